"""Execution of a job: what is left to do of each run, as far as it belongs to this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import vlmfix
from vlmfix.evaluation.runner import baselines
from vlmfix.evaluation.runner.begun_run import BegunRun, Progress
from vlmfix.evaluation.runner.config import Job
from vlmfix.evaluation.runner.host import Assignment, Host, Request
from vlmfix.evaluation.runner.matched_baselines import (
    Answered,
    AnswerIds,
    Matched,
    matching_baselines,
)
from vlmfix.evaluation.runner.plan import RunPlan, TaskPlan, write_job
from vlmfix.evaluation.runner.records import record_head
from vlmfix.evaluation.runner.run_store import RECORDS, Identity, gone
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.runner.shares import answer_shares
from vlmfix.evaluation.runner.start import ActiveRun, RunStarter
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.scoring import score_fields

# The record of a sample that a baseline cannot take from other runs.
_UNANSWERED = {
    "status": "error",
    "error": "one of the two runs has no answer",
    "error_type": "NoAnswer",
}


def execute(
    job: Job,
    task_plan: Sequence[TaskPlan],
    host: Host,
    shard: Shard,
    progress: Progress,
    *,
    held: bool = True,
    steal: bool = False,
) -> list[RunPlan]:
    """Answer what is left of a job, as far as it belongs to this process.

    Baselines that are made to match a method begin when its run has ended. The process that finds it ended
    answers all of them, also the samples of other processes, which may have ended by then.

    Args:
        job: what to do.
        task_plan: its tasks.
        host: of the model of the job.
        shard: of this process.
        progress: is told about the progress.
        held: whether nobody else is at work on this process's share.
        steal: whether it goes on with what others leave, until all is answered.

    Returns:
        The runs, which others may still be at work on; baselines first in each task.

    Raises:
        ResumeError: a run cannot go on.
        TooManyErrorsError: too many samples failed.
        UnsupportedError: a method or baseline does not go with the model.
        ValueError: a method lacks a value for this model, or a recipe is for another one.
        OSError: the disk is full.
    """
    job = host.job(job)
    rows = [(each, variant) for each in task_plan for variant in baselines.rows(job, each.task)]
    host.check([variant for _, variant in rows])  # what does not go together is refused before any work
    for part in task_plan:
        if part.note:
            progress.note(f"{part.task.name}, {part.subset}: {part.note}")
    work = _Work(job, host, shard, progress, _answer_ids(rows, host))
    if not job.output.is_dir():  # the start of a run would make it again, without the data in it
        raise gone(job.output)
    starter = RunStarter(job, host, shard, progress.note)
    active = [starter.begin(each, variant) for each, variant in rows]
    write_job(job, [each.plan for each in active])
    if held:
        work.answer(active, shard)
    if steal:
        work.answer_shares(active, held=held)
    matched = work.matched(active)
    further = [
        starter.begin(
            each, baseline.variant, settings=baseline.settings, calibrated_on=baseline.calibrated_on
        )
        for each, baseline in matched
    ]
    runs = [each.plan for each in (*active, *further)]
    runs.sort(key=lambda plan: (job.tasks.index(plan.task.name), plan.variant.baseline_of is None))
    write_job(job, runs)
    for each, (_, baseline) in zip(further, matched, strict=True):
        if baseline.answers is not None:
            work.copy(each, baseline.answers)
        elif steal:
            work.answer_shares([each], held=held)
        else:
            work.answer_all(each)
    return runs


@dataclass(frozen=True)
class _Work:
    """What a process does for a job."""

    job: Job
    host: Host
    shard: Shard
    progress: Progress
    answer_ids: AnswerIds | None

    def answer(self, active: Sequence[ActiveRun], shard: Shard) -> None:
        """Answer what is left of a share of runs; those of one task take turns, if that is of use."""
        if not self.host.takes_turns:
            for each in active:
                self._answer([each], shard)
            return
        for _, runs in groupby(active, key=lambda each: id(each.task_plan)):
            # Two names of the same settings are one run.
            self._answer([*{each.plan.path: each for each in runs}.values()], shard)

    def _answer(self, active: Sequence[ActiveRun], shard: Shard) -> None:
        begun = [each for run in active if (each := self._begun(run, shard)) is not None]
        if not begun:
            return
        with ExitStack() as stack:
            for each in reversed(begun):
                stack.callback(each.end)
            for each in begun:
                each.show(self.progress)
            batches = stack.enter_context(closing(self.host.answers([each.request for each in begun])))
            for number, records in batches:
                begun[number].write(records)

    def _begun(self, active: ActiveRun, shard: Shard) -> BegunRun | None:
        """What is left of a share of a run; None: nothing."""
        job, plan, draws = self.job, active.plan, active.draws
        task = plan.task
        records = active.read()
        own = [draw for draw in draws.values() if shard.takes(draw.sample)]
        finished = set(records.done) | (set() if job.retry_errors else set(records.failed))
        left = [draw for draw in own if draw.identity not in finished]
        if not left:
            return None
        for name in records.torn:
            file = plan.path / RECORDS / name
            self.progress.note(f"{file}: the last line was cut off; its sample is answered again")

        def judge(sample: Sample, text: str, truncated: bool) -> dict[str, Any]:
            return score_fields(task, sample, text, truncated=truncated)

        answer_ids = self.answer_ids if task.yes_no else None
        assignment = Assignment(plan.variant, task.protocol, job.batch_size, answer_ids)
        request = Request(assignment, left, judge)
        return BegunRun(active, request, str(self.shard), len(own), job.allowed_errors(len(draws)))

    def answer_all(self, active: ActiveRun) -> None:
        """Answer what is left of a run, its own share first."""
        for number in range(self.shard.of):
            self.answer([active], Shard((self.shard.index + number) % self.shard.of, self.shard.of))

    def answer_shares(self, active: Sequence[ActiveRun], *, held: bool) -> None:
        """Answer runs together with the other workers, whatever becomes of these.

        Args:
            active: the runs.
            held: whether nobody else is at work on this process's share.
        """

        def left() -> set[int]:
            return {number for each in active for number in each.untried(self.shard.of)}

        answer_shares(
            self.job.output,
            self.shard,
            held=held,
            left=left,
            answer=lambda shard: self.answer(active, shard),
            note=self.progress.note,
        )

    def copy(self, active: ActiveRun, answers: Mapping[Identity, Mapping[str, Any]]) -> None:
        """Write down answers that were made from the answers of other runs."""
        records = active.read()
        new = []
        for identity, draw in active.draws.items():
            answer = answers.get(identity, _UNANSWERED)
            if identity not in (records.failed if answer is _UNANSWERED else records.done):
                record = {**record_head(draw, draw.sample.prompt, 1), **answer}
                if answer["status"] == "ok":
                    with suppress(Exception):  # a scorer that fails does so again when all is scored
                        record |= score_fields(
                            active.plan.task,
                            draw.sample,
                            record["text"],
                            truncated=record["finish"] == "length",
                        )
                new.append(record)
        if new:
            active.run.append(new, str(self.shard))
            active.run.close()

    def matched(self, active: Sequence[ActiveRun]) -> list[tuple[TaskPlan, Matched]]:
        """The baselines of the methods whose runs have ended."""
        found: list[tuple[TaskPlan, Matched]] = []
        for method in active:
            greedy = _greedy_beside(method, active)
            if greedy is None:
                continue
            stock, own = (Answered(each.plan, each.read()) for each in (greedy, method))
            if all(each.records.is_complete(len(method.draws)) for each in (stock, own)):
                made = matching_baselines(stock, own, self.answer_ids, self.host.decode)
                found += [(method.task_plan, baseline) for baseline in made]
        return found


def _greedy_beside(method: ActiveRun, active: Sequence[ActiveRun]) -> ActiveRun | None:
    """Greedy decoding of the same task as a baseline; None without baselines, or for one of them."""
    if method.plan.variant.baseline_of is not None:
        return None
    task = method.plan.task
    for each in active:
        variant = each.plan.variant
        if (
            each.plan.task is task
            and variant.baseline_of == ""
            and baselines.is_greedy(variant, task.protocol)
        ):
            return each
    return None


def _answer_ids(rows: Sequence[tuple[TaskPlan, Variant]], host: Host) -> AnswerIds | None:
    """Tokens that say yes and no; None where no task asks for them, or where nobody needs them and there are
    none.

    Raises:
        UnsupportedError: there are none, and a baseline needs them.
    """
    if not any(task_plan.task.yes_no for task_plan, _ in rows):
        return None
    needed = any(
        variant.baseline_of is not None and baselines.OUTPUT_SHIFT in task_plan.task.baselines
        for task_plan, variant in rows
    )
    with nullcontext() if needed else suppress(vlmfix.UnsupportedError):
        return host.answer_ids()
    return None
