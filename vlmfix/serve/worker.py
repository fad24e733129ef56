"""A thread in which the model works."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import LogitsProcessorList, PreTrainedModel, ProcessorMixin, StoppingCriteriaList

from vlmfix.api import pictures_under
from vlmfix.engine import tokens
from vlmfix.engine.stats import summed
from vlmfix.evaluation.runner.forward_counter import ForwardCounter
from vlmfix.evaluation.runner.memory import free_memory
from vlmfix.failures import is_out_of_memory
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.sampling import SamplingByRow
from vlmfix.methods.base import Method
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.serve.errors import log, request_error
from vlmfix.serve.job import FinishReason, Row
from vlmfix.serve.metrics import Metrics
from vlmfix.serve.steps import Probabilities, Steps
from vlmfix.serve.waiting import Waiting


class _AbandonedError(Exception):
    """Nobody waits for the batch any more."""


class Worker(threading.Thread):
    """Answers what waits, batch by batch, until nothing more will come.

    Args:
        model: that answers, whose modules no other thread uses.
        processor: of the model, which no other thread uses either.
        waiting: what to answer.
        metrics: to count batches in.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, waiting: Waiting, metrics: Metrics
    ) -> None:
        super().__init__(name="vlmfix-serve", daemon=True)
        self.model = model
        self.processor = processor
        self.waiting = waiting
        self.metrics = metrics

    def run(self) -> None:
        """Work."""
        while batch := self.waiting.take():
            self.metrics.batch_size.observe(len(batch))
            self._answer(batch)

    def _answer(self, rows: Sequence[Row]) -> None:
        """Answer a batch; one that fails is tried again in halves, to find out which request it was."""
        rows = [row for row in rows if not row.is_done and not row.job.cancelled]
        if not rows:
            return
        try:
            for row in rows:
                row.begin(self.processor)
            self._decode(rows)
            return
        except _AbandonedError:
            return
        except Exception as error:
            failure = error
        rows = [row for row in rows if not row.is_done]
        if len(rows) == 1:
            rows[0].is_done = True
            rows[0].job.post(request_error(failure))
        out_of_memory = is_out_of_memory(failure)
        failure.__traceback__ = None  # whose frames hold tensors
        if out_of_memory:
            free_memory()
        if len(rows) > 1:
            log.info("a batch of %d is tried in halves: %s", len(rows), failure)
            self._answer(rows[: len(rows) // 2])
            self._answer(rows[len(rows) // 2 :])

    def _decode(self, rows: Sequence[Row]) -> None:
        plan, steps = rows[0].job.plan, rows[0].job.steps
        methods = plan.make_methods()
        passes = ForwardCounter(self.model, keeps_logits=False)
        longest = max(row.job.decoding.max_tokens for row in rows)
        wanted = plan.decoding(methods, {"max_new_tokens": longest, "do_sample": False})
        for name in ("temperature", "top_p", "top_k"):  # each row has its own
            wanted.pop(name, None)
        draws = [(row.seed, row.job.decoding.temperature, row.job.decoding.top_p) for row in rows]
        probabilities = Probabilities(rows)
        wanted |= {"do_sample": False, "logits_processor": [probabilities, SamplingByRow(draws)]}
        kwargs = plain_decoding(self.model, wanted)
        kwargs["logits_processor"] = LogitsProcessorList(kwargs["logits_processor"])
        with ExitStack() as stack:
            stack.enter_context(self._abandoning(rows))
            for method in methods:
                if method.attaches:
                    stack.enter_context(method(self.model, self.processor))
            stack.enter_context(passes.counted())
            passes.begin()
            if not steps:
                self._decode_alone(rows[0], methods, kwargs, passes)
                return
            ends = tokens.end_tokens(self.model, kwargs)
            criteria = Steps(
                rows, self.model, [] if ends is None else ends.tolist(), probabilities, lambda: passes.count
            )
            kwargs["stopping_criteria"] = StoppingCriteriaList([criteria])
            show = pictures_under(methods, self.processor)
            conversations = [row.job.conversation for row in rows]
            answer_batch(self.model, self.processor, conversations, show, **kwargs)

    def _decode_alone(
        self, row: Row, methods: Sequence[Method], kwargs: dict[str, Any], passes: ForwardCounter
    ) -> None:
        """One answer by a search, a loop or several passes, which is there as a whole or not at all."""
        asking = [each for each in methods if isinstance(each, MultiPassMethod)]
        written = row.writing
        if asking:
            found = asking[0].run_conversation(self.model, self.processor, row.job.conversation, **kwargs)
            final = found.final
        else:
            show = pictures_under(methods, self.processor)
            [final] = answer_batch(self.model, self.processor, [row.job.conversation], show, **kwargs)
        if final is None:
            written.close_with(found.answer)
            ended = True
        else:
            ended = final.ended
            for token in final.token_ids:
                written.add(token)
            written.close(ended=ended)
        activity = {each.name: summed(own) for each in methods if (own := each.latest_edit_stats())}
        reason: FinishReason = "stop" if ended or written.stopped else "length"
        row.finish(reason, activity, passes.count / max(1, len(written.tokens)), 1)

    @contextmanager
    def _abandoning(self, rows: Sequence[Row]) -> Iterator[None]:
        """Within the block, a forward pass for which nobody waits ends the call."""

        def check(*_: Any) -> None:
            if all(row.is_done or row.job.cancelled for row in rows):
                raise _AbandonedError

        handle = self.model.register_forward_pre_hook(check)
        try:
            yield
        finally:
            handle.remove()
