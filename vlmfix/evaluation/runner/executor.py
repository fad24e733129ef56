"""A job at work: what is left to do of each run, as far as it belongs to this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

import vlmfix
from vlmfix.api import answer_batch
from vlmfix.evaluation.runner import baselines
from vlmfix.evaluation.runner.config import Job, Variant
from vlmfix.evaluation.runner.matched_baselines import (
    Answered,
    AnswerIds,
    Matched,
    matching_controls,
)
from vlmfix.evaluation.runner.plan import Planned, Prepared, write_job
from vlmfix.evaluation.runner.run_store import RECORDS, Identity
from vlmfix.evaluation.runner.shard import Share
from vlmfix.evaluation.runner.start import Beginning, Begun
from vlmfix.evaluation.runner.worker import Worker, record_head
from vlmfix.evaluation.sample import Item
from vlmfix.evaluation.tasks.base import Task
from vlmfix.inference.decoding import plain_decoding
from vlmfix.methods.baselines.output_shift import answer_ids

# Prompts per forward pass, where nobody says; halved when memory runs out.
_BATCH_SIZES = {"cpu": 32, "cuda": 64}
_LONG_ANSWER = 64
# The record of an item that a control cannot take from other runs.
_UNANSWERED = {
    "status": "error",
    "error": "one of the two runs has no answer",
    "error_type": "NoAnswer",
}


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def begin(self, title: str, running: str, total: int, done: int) -> None:
        """A run begins, of which `done` items are there; `running` names the mean score of its items."""

    def advance(self, records: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> None:
        """Records were written, and the successful ones have these scores."""

    def end(self) -> None:
        """The run is over."""


def execute(
    job: Job,
    prepared: Sequence[Prepared],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    share: Share,
    watcher: Watcher,
) -> list[Planned]:
    """Answer what is left of a job, as far as it belongs to this process.

    Controls that are made to match a method begin when its run has ended. The process that finds it ended
    answers all of them, those of others too: they may have gone by then.

    Args:
        job: what to do.
        prepared: its tasks.
        model: that of the job.
        processor: with it.
        share: of this process.
        watcher: is told about the progress.

    Returns:
        The runs, which others may still be at work on; controls first in each task.

    Raises:
        ResumeError: a run cannot go on.
        TooManyErrorsError: too many items failed.
        UnsupportedError: a method or control does not go with the model.
        ValueError: a method lacks a value for this model.
        OSError: the disk is full.
    """
    rows = [(each, variant) for each in prepared for variant in baselines.rows(job, each.task)]
    for _, variant in rows:  # what does not go together is refused before any work
        with ExitStack() as stack:
            for method in variant.methods:
                if method.attaches:
                    stack.enter_context(method(model, processor))
    work = _Work(job, model, processor, share, watcher, _answer_ids(rows, processor))
    _warm_up(model, processor)
    beginning = Beginning(job, model, processor, share, watcher.note)
    begun = [beginning.begin(each, variant) for each, variant in rows]
    write_job(job, [each.planned for each in begun])
    for each in begun:
        work.answer(each, share)
    matched = work.matched(begun)
    further = [
        beginning.begin(each, control.variant, settings=control.settings, calibrated_on=control.calibrated_on)
        for each, control in matched
    ]
    runs = [each.planned for each in (*begun, *further)]
    runs.sort(key=lambda planned: (job.tasks.index(planned.task.name), planned.variant.control is None))
    write_job(job, runs)
    for each, (_, control) in zip(further, matched, strict=True):
        if control.answers is None:
            work.answer_all(each)
        else:
            work.copy(each, control.answers)
    return runs


def _warm_up(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Pay for what only the first answer of a process costs, before time is measured."""
    grey = Image.new("RGB", (224, 224), (128, 128, 128))
    decoding = plain_decoding(model, {"max_new_tokens": 2})
    answer_batch(model, processor, [(grey, "Hello")] * 2, **decoding)


@dataclass(frozen=True)
class _Work:
    """What a process does for a job, run by run."""

    job: Job
    model: PreTrainedModel
    processor: ProcessorMixin
    share: Share
    watcher: Watcher
    answer_ids: AnswerIds | None

    def answer(self, begun: Begun, share: Share) -> None:
        """Answer what is left of a share of a run."""
        job, planned, draws = self.job, begun.planned, begun.draws
        task = planned.task
        records = begun.read()
        own = [draw for draw in draws.values() if share.takes(draw.item)]
        finished = set(records.done) | (set() if job.retry_errors else set(records.failed))
        left = [draw for draw in own if draw.identity not in finished]
        if not left:
            return
        for name in records.torn:
            file = planned.path / RECORDS / name
            self.watcher.note(f"{file}: the last line was cut off; its item is answered again")
        items = {draw.item.id: draw.item for draw in own}

        def advance(written: list[dict[str, Any]]) -> None:
            scores = []
            for record in (each for each in written if each["status"] == "ok"):
                with suppress(Exception):  # a scorer that fails does so again when all is scored
                    cut = record["finish"] == "length"
                    scores.append(task.judge(items[record["id"]], record["text"], cut=cut).score)
            self.watcher.advance(written, scores)

        def parse(item: Item, text: str, cut: bool) -> Any:
            return task.judge(item, text, cut=cut).parsed

        gives_margins = task.yes_no and baselines.is_greedy(planned.variant, task.protocol)
        worker = Worker(
            self.model,
            self.processor,
            planned.variant.methods,
            task.protocol,
            parse,
            str(self.share),
            _batch_size(job, task, self.model),
            self.answer_ids if gives_margins else None,
        )
        title = f"{task.name} · {planned.variant.label}"
        self.watcher.begin(title, task.running, len(own), len(own) - len(left))
        try:
            worker.work(begun.run, left, max_errors=job.allowed_errors(len(draws)), on_records=advance)
        finally:
            self.watcher.end()

    def answer_all(self, begun: Begun) -> None:
        """Answer what is left of a run, its own share first."""
        for number in range(self.share.of):
            self.answer(begun, Share((self.share.index + number) % self.share.of, self.share.of))

    def copy(self, begun: Begun, answers: Mapping[Identity, Mapping[str, Any]]) -> None:
        """Write down answers that were made of those of other runs."""
        records = begun.read()
        new = []
        for identity, draw in begun.draws.items():
            answer = answers.get(identity, _UNANSWERED)
            if identity not in (records.failed if answer is _UNANSWERED else records.done):
                new.append({**record_head(draw, draw.item.prompt, 1), **answer})
        if new:
            begun.run.append(new, str(self.share))
            begun.run.close()

    def matched(self, begun: Sequence[Begun]) -> list[tuple[Prepared, Matched]]:
        """The controls of the methods whose runs have ended."""
        found: list[tuple[Prepared, Matched]] = []
        for method in begun:
            greedy = _greedy_beside(method, begun)
            if greedy is None:
                continue
            stock, own = (Answered(each.planned, each.read()) for each in (greedy, method))
            if all(each.records.is_complete(len(method.draws)) for each in (stock, own)):
                made = matching_controls(stock, own, self.answer_ids, self.processor)
                found += [(method.prepared, control) for control in made]
        return found


def _greedy_beside(method: Begun, begun: Sequence[Begun]) -> Begun | None:
    """Greedy decoding of the same task as a control; None where there are no controls, or for one of them."""
    if method.planned.variant.control is not None:
        return None
    task = method.planned.task
    for each in begun:
        variant = each.planned.variant
        if (
            each.planned.task is task
            and variant.control == ""
            and baselines.is_greedy(variant, task.protocol)
        ):
            return each
    return None


def _answer_ids(rows: Sequence[tuple[Prepared, Variant]], processor: ProcessorMixin) -> AnswerIds | None:
    """Tokens that say yes and no; None where no task asks for them, or where nobody needs them and there are
    none.

    Raises:
        UnsupportedError: there are none, and a control needs them.
    """
    if not any(prepared.task.yes_no for prepared, _ in rows):
        return None
    needed = any(
        variant.control is not None and baselines.OUTPUT_SHIFT in prepared.task.controls
        for prepared, variant in rows
    )
    with nullcontext() if needed else suppress(vlmfix.UnsupportedError):
        return answer_ids(processor.tokenizer)
    return None


def _batch_size(job: Job, task: Task, model: PreTrainedModel) -> int:
    if job.batch_size:
        return job.batch_size
    size = _BATCH_SIZES.get(model.device.type, 8)
    return size if task.protocol.max_new_tokens <= _LONG_ANSWER else size // 2
