"""One process at work on a run: it answers samples in batches."""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from transformers import LogitsProcessorList, PreTrainedModel, ProcessorMixin

import vlmfix
from vlmfix.api import decoding_under, pictures_under, prompt_under
from vlmfix.engine.kept_readings import KeptReadings, kept_readings
from vlmfix.engine.stats import summed
from vlmfix.evaluation.runner.forward_counter import ForwardCounter
from vlmfix.evaluation.runner.loading import KeptPictures, Loaded, Loader
from vlmfix.evaluation.runner.memory import free_memory, peak_memory, reset_peak_memory
from vlmfix.evaluation.runner.records import Draw, Judge, judged, reasoning_fields, record_head
from vlmfix.evaluation.runner.writing import Batches
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.failures import is_out_of_memory
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.sampling import SeededSampling, seed_of
from vlmfix.inference.stream import Answering, AnswerStream
from vlmfix.methods.baselines.output_shift import answer_margins
from vlmfix.methods.multi_pass import MultiPassMethod

# Characters by which the prompts of a batch may differ in length.
_LENGTHS = 2000
# Settings of sampling.
_WARPING = ("temperature", "top_p", "top_k")
# Of margins: what lies below may depend on the batch.
_DIGITS = 4
_WIDEST = 1e4  # of a margin, where a method rules out one of the two answers


@dataclass(frozen=True)
class _Batch:
    """Draws that were begun together.

    Args:
        draws: as they were asked.
        prefill: seconds until the first forward pass was over, and those that others spared it.
        begun: seconds after that until the first tokens were there, or all of them.
        passes: forward passes up to then.
        margins: see `Worker.answer_ids`.
        kept: bytes of what was kept for other runs.
    """

    draws: list[Draw]
    prefill: float
    begun: float
    passes: float
    margins: list[dict[str, float]]
    kept: int


@dataclass
class Worker:
    """Answers draws with one model and the methods that act on it.

    Args:
        model: any that `vlmfix.generate` takes.
        processor: of the model.
        methods: in the order of attachment; none is plain decoding.
        protocol: which fixes length and decoding.
        judge: of the task.
        batch_size: prompts per forward pass; halved for good where memory runs out.
        answer_ids: tokens that begin a yes, and those that begin a no, where records shall hold the margin
            between them at the first step; None: they shall not.
        decoding: arguments of `model.generate` in the place of those of the protocol.
        pictures: what other runs have loaded, and will want; None: there are none.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    methods: Sequence[vlmfix.Method]
    protocol: Protocol
    judge: Judge
    batch_size: int
    answer_ids: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    pictures: KeptPictures | None = None
    _passes: ForwardCounter = field(init=False)
    _loader: Loader = field(init=False)
    _stream: AnswerStream = field(init=False)
    _unfinished: dict[Answering, _Batch] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._passes = ForwardCounter(self.model, keeps_logits=self.answer_ids is not None)
        if any(isinstance(method, MultiPassMethod) for method in self.methods):
            self.batch_size = 1

    def answers(self, draws: Sequence[Draw]) -> Batches:
        """Answer all draws, in batches of neighbours; what is left of one is answered with the next.

        Args:
            draws: in any order.

        Raises:
            UnsupportedError: a method does not go with the model or the protocol.
        """
        queue = deque(sorted(draws, key=lambda draw: draw.order))
        reset_peak_memory(self.model.device)
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", vlmfix.InactiveMethodWarning)  # the report says it
            for method in self.methods:
                if method.attaches:
                    stack.enter_context(method(self.model, self.processor))
            stack.enter_context(self._passes.counted())
            self._loader = stack.enter_context(Loader(self.processor, self.methods, self.pictures))
            self._forget()
            ahead = self._begin(queue)
            while ahead is not None or self._unfinished:
                if ahead is None:
                    records, again = self._finish()
                else:
                    batch, loading = ahead
                    ahead = self._begin(queue)
                    records, again = self._records(batch, loading.result())
                if again:  # memory ran out
                    self._forget()
                    queue.extendleft(reversed([*again, *(ahead[0] if ahead else ())]))
                    ahead = self._begin(queue)
                if records:
                    yield records

    def _begin(self, queue: deque[Draw]) -> tuple[list[Draw], Future[Loaded]] | None:
        """Begin to load the next batch; None: there is none."""
        if not queue:
            return None
        batch = self._next_batch(queue)
        return batch, self._loader.begin([draw.sample for draw in batch])

    def _next_batch(self, queue: deque[Draw]) -> list[Draw]:
        """Neighbours; a prompt that is far longer or shorter waits, as all are padded to the longest."""
        batch = [queue.popleft()]
        shortest = longest = len(batch[0].sample.prompt)
        while queue and len(batch) < self.batch_size:
            length = len(queue[0].sample.prompt)
            shortest, longest = min(shortest, length), max(longest, length)
            if longest - shortest > _LENGTHS:
                break
            batch.append(queue.popleft())
        return batch

    def _records(self, batch: list[Draw], loaded: Loaded) -> tuple[list[dict[str, Any]], list[Draw]]:
        """Records, of success or of failure, of all draws that are answered after these have been begun, and
        the draws for which memory ran out."""
        failures = [(draw, loaded.failure(draw.sample)) for draw in batch]
        if len(batch) > 1 and any(error is not None and is_out_of_memory(error) for _, error in failures):
            lost = self._forget() + batch
            self._halve(lost)
            return [], lost
        readable = [draw for draw, error in failures if error is None]
        records = [self._failure(draw, error) for draw, error in failures if error is not None]
        if not readable:
            return records, []
        try:
            self._ask(readable, loaded)
        except vlmfix.UnsupportedError:
            raise
        except Exception as error:
            reason = error.with_traceback(None)  # whose frames hold tensors
            return self._after(reason, self._forget() + readable, records)
        return self._ended(self._stream.advance(), records)

    def _finish(self) -> tuple[list[dict[str, Any]], list[Draw]]:
        """Records of all draws that were begun, and the draws for which memory ran out."""
        return self._ended(self._stream.finish(), [])

    def _ended(
        self, ended: Iterator[Answering], records: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[Draw]]:
        """The same for draws whose answers end; their records come to others that are there."""
        try:
            for answering in ended:
                records += self._written(self._unfinished[answering], answering)
                del self._unfinished[answering]
        except vlmfix.UnsupportedError:
            raise
        except Exception as error:
            reason = error.with_traceback(None)
        else:
            return records, []
        return self._after(reason, self._forget(), records)

    def _after(
        self, reason: Exception, draws: list[Draw], records: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[Draw]]:
        """The same after an error, when draws are left that nobody answers."""
        if is_out_of_memory(reason):
            kept = kept_readings(self.model)
            gave_up = kept is not None and kept.give_up()
            free_memory()
            if gave_up:
                return records, draws
            if len(draws) > 1:
                self._halve(draws)
                return records, draws
        if len(draws) == 1:
            return [*records, self._failure(draws[0], reason)], []
        for draw in draws:  # which of them it was
            records += self._alone(draw)
        return records, []

    def _alone(self, draw: Draw) -> list[dict[str, Any]]:
        """The record of a draw that is answered by itself."""
        records, again = self._records([draw], self._loader.begin([draw.sample]).result())
        return self._alone(draw) if again else records  # what was kept for other runs is gone now

    def _halve(self, draws: Sequence[Draw]) -> None:
        """Answer fewer at a time than these, for which memory ran out."""
        self.batch_size = min(self.batch_size, len(draws)) // 2

    def _forget(self) -> list[Draw]:
        """Begin a stream in the place of that at work, which loses these draws."""
        lost = [draw for batch in self._unfinished.values() for draw in batch.draws]
        self._unfinished = {}
        self._stream = AnswerStream(self.model, self.processor, self.batch_size, lambda: self._passes.count)
        return lost

    def _ask(self, batch: list[Draw], loaded: Loaded) -> None:
        """Begin to answer draws."""
        kept = kept_readings(self.model) or KeptReadings(self.model.device, 0)
        others, spared = kept.size, kept.spared_seconds
        if others:
            reset_peak_memory(self.model.device)
        start = time.perf_counter()
        self._passes.begin()
        generate_kwargs = self._generate_kwargs(batch)
        asking = [method for method in self.methods if isinstance(method, MultiPassMethod)]
        if asking:
            [asked] = loaded.asked
            refinement = asking[0].run_conversation(self.model, self.processor, asked, **generate_kwargs)
            answering = self._stream.give([refinement.final])
        else:
            show = pictures_under(self.methods, self.processor)
            answering = self._stream.begin(loaded.asked, show, loaded.prepared, **generate_kwargs)
        end = time.perf_counter()
        first = self._passes.first or end
        prefill = first - start + kept.spared_seconds - spared
        margins = self._margins(len(batch))
        self._unfinished[answering] = _Batch(batch, prefill, end - first, self._passes.count, margins, others)

    def _written(self, batch: _Batch, answering: Answering) -> list[dict[str, Any]]:
        """One record a draw of a batch that has been answered."""
        draws, answers = batch.draws, answering.answers
        memory = peak_memory(self.model.device)
        if memory is not None:
            memory -= batch.kept
        passes = (batch.passes + answering.passes) / max(len(answer.token_ids) for answer in answers)
        did = self._activities(len(draws))
        return [
            record_head(draw, self._asked(draw), len(draws))
            | {
                "status": "ok",
                "text": answer.text,
                "token_ids": list(answer.token_ids[answer.reasoning_tokens :]),
                "n_prompt_tokens": answer.prompt_tokens,
                "n_new_tokens": len(answer.token_ids),
                "finish": "eos" if answer.ended else "length",
                "method_info": activity,
                "time_prefill": batch.prefill / len(draws),
                "time_decode": (batch.begun + answering.seconds) / len(draws),
                "forwards_per_token": passes,
                "peak_memory": memory,
            }
            | reasoning_fields(answer)
            | (
                judged(self.judge, draw.sample, answer.text, truncated=not answer.ended)
                if answer.reached
                else {}
            )
            | (margin if answer.reasoning is None else {})  # of the first step, which reasons
            for draw, answer, activity, margin in zip(draws, answers, did, batch.margins, strict=True)
        ]

    def _asked(self, draw: Draw) -> str:
        """What is asked in place of the question."""
        return prompt_under(self.methods, draw.sample.prompt)

    def _margins(self, samples: int) -> list[dict[str, float]]:
        """By how much a yes is likelier than a no at the first step of each sample, where that is wanted."""
        if self.answer_ids is None or any(isinstance(each, MultiPassMethod) for each in self.methods):
            return [{}] * samples
        assert self._passes.logits is not None
        logits = self._passes.logits[:: len(self._passes.logits) // samples]  # beams begin alike
        margins = answer_margins(logits, *self.answer_ids).clamp(-_WIDEST, _WIDEST).tolist()
        # Where a method rules out yes and no, there is none.
        return [{} if math.isnan(margin) else {"margin": round(margin, _DIGITS)} for margin in margins]

    def _generate_kwargs(self, batch: list[Draw]) -> dict[str, Any]:
        """The decoding of the protocol under the methods; repeats are drawn by seeds of their own."""
        kwargs = decoding_of(self.model, self.methods, self.protocol, self.decoding)
        warping = {name: kwargs.pop(name, None) for name in _WARPING}
        if kwargs["do_sample"]:
            seeds = [seed_of(draw.seed, draw.sample.id, draw.repeat) for draw in batch]
            kwargs["logits_processor"] = LogitsProcessorList([SeededSampling(seeds, **warping)])
        return plain_decoding(self.model, kwargs | {"do_sample": False})

    def _activities(self, samples: int) -> list[dict[str, Any]]:
        """What each method did for each sample, as sums that can be added up."""
        found: list[dict[str, Any]] = [{} for _ in range(samples)]
        for method in self.methods:
            rows = method.latest_edit_stats()
            beams = len(rows) // samples
            for index in range(samples if beams else 0):
                found[index][method.name] = summed(rows[index * beams : (index + 1) * beams])
        return found

    def _failure(self, draw: Draw, error: Exception) -> dict[str, Any]:
        reason = " ".join(str(error).split()) or type(error).__name__
        return record_head(draw, self._asked(draw), 1) | {
            "status": "error",
            "error": reason,
            "error_type": type(error).__name__,
        }


def decoding_of(
    model: PreTrainedModel,
    methods: Sequence[vlmfix.Method],
    protocol: Protocol,
    decoding: Mapping[str, Any],
) -> dict[str, Any]:
    """How answers are decoded: as the protocol says, under the methods; nothing else of the checkpoint's
    generation_config but token ids.

    Where the protocol has a single beam, a method may bring as many as it wants.

    Args:
        model: that decodes.
        methods: in the order of attachment.
        protocol: of the task.
        decoding: of a recipe, in the place of what the protocol says.

    Raises:
        UnsupportedError: the protocol samples, which no recipe with beams does.
    """
    if decoding.get("num_beams", 1) > 1 and protocol.temperature > 0:
        raise vlmfix.UnsupportedError(
            f"a recipe decodes with {decoding['num_beams']} beams, and {protocol.name} samples at "
            f"temperature {protocol.temperature:g}; choose a protocol without sampling"
        )
    kwargs: dict[str, Any] = {
        "max_new_tokens": protocol.max_new_tokens,
        "do_sample": protocol.temperature > 0,
    }
    if protocol.num_beams > 1:
        kwargs["num_beams"] = protocol.num_beams
    if protocol.temperature > 0:
        kwargs |= {name: getattr(protocol, name) for name in _WARPING}
    return plain_decoding(model, decoding_under(methods, kwargs | dict(decoding)))
