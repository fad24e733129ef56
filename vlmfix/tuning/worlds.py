"""The data sets of a search, and the answers of candidates on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.analysis.roc import auc
from vlmfix.evaluation.report.collect import outcome_of
from vlmfix.evaluation.runner import matched_baselines
from vlmfix.evaluation.runner.config import Job, make_job
from vlmfix.evaluation.runner.host import LocalHost
from vlmfix.evaluation.runner.plan import RunPlan, TaskPlan, prepare
from vlmfix.evaluation.runner.run_store import Records
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.runner.start import ActiveRun, RunStarter
from vlmfix.evaluation.runner.worker import Worker
from vlmfix.evaluation.runner.writing import write_down
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.scoring import score_fields
from vlmfix.methods.baselines.output_shift import answer_ids
from vlmfix.tuning.candidates import Candidate
from vlmfix.tuning.config import TuneSettings
from vlmfix.tuning.objective import AUC, COST, Figures
from vlmfix.tuning.sets import ThreeSets

# Prompts times beams in a forward pass.
_ROWS = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True)
class Answered:
    """What a candidate said to some samples.

    Args:
        outcome: scored; of yes/no questions, the answers under the offset.
        records: of the samples that were answered, by sample and repeat.
        plan: its samples, and where its records are.
        margins: between yes and no at the first token, in nats, `(samples,)`, NaN where a sample failed; None
            where answers are texts.
        is_yes: which answers should be yes, `(samples,)` bool; None like `margins`.
        cost: of the candidate.
    """

    outcome: Outcome
    plan: RunPlan
    records: Records
    margins: np.ndarray | None
    is_yes: np.ndarray | None
    cost: float

    @property
    def figures(self) -> Figures:
        """The values of the metrics of the whole task."""
        found = {each.name: each.value for each in self.outcome.metrics if not each.group}
        if self.margins is not None and self.is_yes is not None:
            found[AUC] = auc(*pooled_margins([self]))
        return {**found, COST: self.cost}

    def named(self, label: str) -> Answered:
        """The same under another label."""
        return replace(self, outcome=replace(self.outcome, method=label, baseline_of=None))


class World:
    """One data set of a search: its three sets, and the runs of candidates on it.

    Args:
        name: of the data set, as tables show it.
        job: whose data these are; candidates are its runs.
        plan: its only task, with all samples of the three sets.
        sets: search, choice and test.
        model: as loaded.
        processor: with it.
        shard: of this process, for the names of its files.
    """

    def __init__(
        self,
        name: str,
        job: Job,
        plan: TaskPlan,
        sets: ThreeSets,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        shard: Shard,
    ) -> None:
        self.name = name
        self.job = job
        self.sets = sets
        self.task = plan.task
        self.model = model
        self.processor = processor
        self.shard = shard
        self._plan = replace(plan, samples=[*sets.search, *sets.choice, *sets.test])
        self._host = LocalHost(model, processor)
        self._starter = RunStarter(job, self._host, shard, note=lambda text: None)
        self._answer_ids = answer_ids(processor.tokenizer) if plan.task.yes_no else None

    def answer(
        self,
        candidate: Candidate,
        samples: Sequence[Sample],
        *,
        offset: float | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Answered:
        """Answer what is left of some samples.

        Args:
            candidate: methods and decoding.
            samples: of this data set.
            offset: added to the margin between yes and no before it is read as an answer; None: the one with
                the highest accuracy on these very samples.
            progress: called with the number of samples just answered.

        Raises:
            TooManyErrorsError: too many samples failed.
            ValueError: no sample could be answered.
        """
        active = self._starter.begin(self._plan, candidate.variant)
        wanted = {sample.id for sample in samples}
        read = active.read()
        known = {identity for identity in (*read.done, *read.failed) if identity[0] in wanted}
        left = [draw for each, draw in active.draws.items() if each[0] in wanted and each not in known]
        progress(len(known))
        if left:
            self._work(active, candidate, left, progress)
            read = active.read()
        plan = RunPlan(self.task, list(samples), candidate.variant, active.plan.path)
        return self._judged(plan, candidate, read, offset)

    def _work(
        self, active: ActiveRun, candidate: Candidate, left: Sequence[Any], progress: Callable[[int], None]
    ) -> None:
        def judge(sample: Sample, text: str, truncated: bool) -> dict[str, Any]:
            return score_fields(self.task, sample, text, truncated=truncated)

        rows = _ROWS.get(self.model.device.type, 16)
        beams = max(1, round(candidate.cost)) if candidate.parts else 1
        worker = Worker(
            self.model,
            self.processor,
            candidate.methods,
            self.task.protocol,
            judge,
            self.job.batch_size or max(1, rows // beams),
            self._answer_ids,
        )
        write_down(
            active.run,
            str(self.shard),
            worker.answers(left),
            max_errors=self.job.allowed_errors(len(active.draws)),
            on_records=lambda records: progress(len(records)),
        )

    def _judged(
        self, plan: RunPlan, candidate: Candidate, records: Records, offset: float | None
    ) -> Answered:
        outcome = outcome_of(plan)
        found = [records.done.get((sample.id, repeat)) for sample, repeat in plan.identities]
        if not any(found):
            raise ValueError(f"none of {len(found)} samples of {self.name} was answered; see {plan.path}")
        if self._answer_ids is None:
            return Answered(outcome, plan, records, None, None, candidate.cost)
        if any(record is not None and "reasoning" in record for record in found):
            raise ValueError(
                f"the model reasons before it answers {self.name}, so that its first step decides between no "
                "yes and no; tune on captions, or switch the reasoning off in the chat template"
            )
        margins = np.array([np.nan if record is None else record["margin"] for record in found])
        is_yes = np.array([sample.target == "yes" for sample, _ in plan.identities])
        given = Answered(outcome, plan, records, margins, is_yes, candidate.cost)
        delta = best_offset(*pooled_margins([given])) if offset is None else offset
        texts = [
            None if record is None else "yes" if margin + delta > 0 else "no"
            for record, margin in zip(found, margins, strict=True)
        ]
        return replace(given, outcome=self._rescored(outcome, plan, texts, [False] * len(texts)))

    def matched(self, greedy: Answered, method: Answered) -> dict[str, Answered]:
        """Captions of greedy decoding cut to the lengths of a method; where it says more, its own cut."""
        found = {}
        own, other = (matched_baselines.Answered(each.plan, each.records) for each in (greedy, method))
        for each in matched_baselines.matching_baselines(own, other, None, self._host.decode):
            if each.answers is None:
                continue
            is_greedy = each.variant.baseline_of is not None
            records = [each.answers.get(identity) for identity in _identities(method.plan)]
            texts = [None if record is None else record["text"] for record in records]
            cut = [record is not None and record["finish"] == "length" for record in records]
            base = greedy if is_greedy else method
            outcome = self._rescored(base.outcome, method.plan, texts, cut)
            label = "greedy, cut to the recipe" if is_greedy else "recipe, cut to greedy"
            found[label] = Answered(outcome, base.plan, base.records, None, None, base.cost)
        return found

    def _rescored(
        self, outcome: Outcome, plan: RunPlan, texts: Sequence[str | None], truncated: Sequence[bool]
    ) -> Outcome:
        """An outcome of other answers to the same samples."""
        samples = [sample for sample, _ in plan.identities]
        scores = [
            None if text is None else self.task.judge(sample, text, truncated=cut)
            for sample, text, cut in zip(samples, texts, truncated, strict=True)
        ]
        judged = self.task.metrics(samples, texts, truncated, scores)
        results = [
            replace(
                result,
                answer=text,
                verdict=result.verdict if score is None else score.verdict,
                score=None if score is None else score.value,
            )
            for result, text, score in zip(outcome.samples, texts, scores, strict=True)
        ]
        return replace(outcome, samples=results, metrics=judged.metrics, parsers={})


def open_worlds(
    settings: TuneSettings,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    shard: Shard,
    drawn: Callable[[int], None] | None = None,
) -> list[World]:
    """The data sets of a search with their three sets of images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, or there are too few images.
    """
    worlds = []
    for number, (name, data) in enumerate(settings.data.items()):
        job = make_job(
            {
                "tasks": [settings.task],
                "model": settings.model,
                "revision": settings.revision,
                "data": data,
                "protocol": settings.protocol,
                "output": str(settings.output / f"answers-{number}"),
                "batch_size": settings.batch_size or "auto",
                "device": settings.device,
                "dtype": settings.dtype,
                "baselines": False,
            }
        )
        [plan] = prepare(job, drawn)
        sets = ThreeSets.of(plan.samples, settings.sizes, name=name)
        worlds.append(World(name, job, plan, sets, model, processor, shard))
    return worlds


def best_offset(margins: np.ndarray, is_yes: np.ndarray) -> float:
    """The offset to the margins between yes and no with which most answers are right.

    It lies half-way between two margins; of several such places, the one next to no offset.

    Args:
        margins: in nats, `(samples,)`, at least one.
        is_yes: which answers should be yes, `(samples,)` bool.
    """
    order = np.argsort(margins, kind="stable")
    values, labels = margins[order], is_yes[order]
    # With the first k as no: right are the noes among them and the yeses among the others.
    right = np.r_[0, np.cumsum(~labels)] + labels.sum() - np.r_[0, np.cumsum(labels)]
    between = np.r_[values[0] - 1, (values[1:] + values[:-1]) / 2, values[-1] + 1]
    distinct = np.r_[True, values[1:] > values[:-1], True]
    best = distinct & (right == right[distinct].max())
    thresholds = between[best]
    return -float(thresholds[np.abs(thresholds).argmin()])


def pooled_margins(answered: Sequence[Answered]) -> tuple[np.ndarray, np.ndarray]:
    """The margins of all that was answered, and which answers should be yes, `(samples,)` each.

    Args:
        answered: of yes/no questions.
    """
    margins, is_yes = [], []
    for each in answered:
        assert each.margins is not None
        assert each.is_yes is not None
        kept = ~np.isnan(each.margins)
        margins.append(each.margins[kept])
        is_yes.append(each.is_yes[kept])
    return np.concatenate(margins), np.concatenate(is_yes)


def _identities(plan: RunPlan) -> list[tuple[str, int]]:
    return [(sample.id, repeat) for sample, repeat in plan.identities]
