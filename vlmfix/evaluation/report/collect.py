"""Collection of the records of runs into figures, files and the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from vlmfix.atomic import write_text
from vlmfix.engine.kl import Divergence
from vlmfix.evaluation.analysis.comparison import Comparison, compare
from vlmfix.evaluation.analysis.margins import calibration, margin_metrics
from vlmfix.evaluation.analysis.results import AnyMetric, Outcome, SampleResult
from vlmfix.evaluation.files.atomic import write_json
from vlmfix.evaluation.report.html import write_report
from vlmfix.evaluation.report.json_summary import costs, summarise
from vlmfix.evaluation.runner.plan import RunPlan
from vlmfix.evaluation.runner.run_store import RunStore, read_manifest
from vlmfix.evaluation.tasks.scoring import score_of

METRICS, COSTS, REPORT, ERRORS = "metrics.json", "costs.json", "report.html", "errors.jsonl"
SYNTHETIC_CAVEAT = (
    "Synthetic scenes and the embedded models are a test bed: effects measured here are no claim about large "
    "models or photographs."
)


@dataclass(frozen=True)
class Gathered:
    """What the runs of a job have come to.

    Args:
        outcomes: one a run, in the order of the job.
        missing: samples that nobody has tried yet.
        total: samples in all.
    """

    outcomes: list[Outcome]
    missing: int
    total: int


def gather(runs: Sequence[RunPlan], *, trust: bool = False) -> Gathered:
    """Read and score the records of all runs; what is not answered yet is counted.

    Args:
        runs: of a job.
        trust: whether records and manifests that somebody edited count.

    Raises:
        ValueError: records are damaged, edited, or belong to other samples.
        FileNotFoundError: a run has no directory.
    """
    outcomes, missing, total = [], 0, 0
    for plan in runs:
        outcome = outcome_of(plan, trust=trust)
        outcomes.append(outcome)
        total += outcome.counts["samples"]
        missing += outcome.counts["samples"] - outcome.counts["answered"] - outcome.counts["failed"]
    return Gathered(outcomes, missing, total)


def outcome_of(plan: RunPlan, *, trust: bool = False) -> Outcome:
    """The outcome of one run as far as it got.

    Args:
        plan: of the run.
        trust: whether records and manifests that somebody edited count.

    Raises:
        ValueError: records are damaged, edited, or belong to other samples.
        FileNotFoundError: the run has no directory.
    """
    task, manifest = plan.task, read_manifest(plan.path, trust=trust)
    identities = list(plan.identities)
    keys = {(sample.id, repeat): None for sample, repeat in identities}
    records = RunStore(plan.path, manifest).read(keys, trust=trust)
    found = [records.done.get((sample.id, repeat)) for sample, repeat in identities]
    failed = [records.failed.get((sample.id, repeat)) for sample, repeat in identities]
    samples = [sample for sample, _ in identities]
    texts = [None if record is None else record["text"] for record in found]
    truncated = [record is not None and record["finish"] == "length" for record in found]
    scores = [
        None if record is None else score_of(task, sample, record)
        for sample, record in zip(samples, found, strict=True)
    ]
    metrics = task.metrics(samples, texts, truncated, scores)
    results = []
    for sample, text, score, failure in zip(samples, texts, scores, failed, strict=True):
        verdict = "not answered" if failure is None else f"failed: {failure['error']}"
        results.append(
            SampleResult(
                id=sample.id,
                cluster=sample.cluster,
                image=sample.image,
                prompt=sample.prompt,
                target=task.target(sample),
                answer=text,
                verdict=verdict if score is None else score.verdict,
                score=None if score is None else score.value,
                parsed=None if score is None else score.parsed,
            )
        )
    answered = [record for record in found if record is not None]
    figures: list[AnyMetric] = list(metrics.metrics)
    calibrated = None
    if task.yes_no and answered and all("margin" in record for record in answered):
        margins = np.array([np.nan if record is None else record["margin"] for record in found])
        is_yes = np.array([sample.target == "yes" for sample in samples])
        splits = [str(sample.meta.get("split", "all")) for sample in samples]
        added = margin_metrics(margins, is_yes, [sample.cluster for sample in samples], splits)
        figures = _after(figures, added)
        calibrated = calibration(margins, is_yes)
    activity, inactive = _activity(answered)
    return Outcome(
        task=task.name,
        protocol=task.protocol.id,
        method=plan.variant.label,
        subset=plan.subset,
        unit=task.unit,
        baseline_of=plan.variant.baseline_of,
        parameters=_parameters(manifest["key"]),
        samples=results,
        repeats=np.array([repeat for _, repeat in identities]),
        metrics=figures,
        calibration=calibrated,
        tradeoff=task.tradeoff,
        parsers=metrics.parsers if len(metrics.parsers) > 1 else {},
        objects=metrics.objects,
        yes_no=task.yes_no,
        counts={
            "samples": len(samples),
            "answered": len(answered),
            "failed": sum(failure is not None for failure in failed),
            "unparsed": metrics.unparsed,
            "truncated": sum(truncated),
        },
        failures=dict(sorted(Counter(failure["error_type"] for failure in failed if failure).items())),
        costs=_costs(answered),
        activity=activity,
        inactive=inactive,
        details={
            "key": manifest["key"],
            "info": manifest["info"],
            "environments": manifest["environments"],
        },
    )


def _after(metrics: Sequence[AnyMetric], added: Sequence[AnyMetric]) -> list[AnyMetric]:
    """Each group's metrics with those that were added after its last one with a better direction."""
    found = list(metrics)
    for each in added:
        places = [index for index, metric in enumerate(found) if metric.group == each.group and metric.better]
        found.insert(places[-1] + 1 if places else len(found), each)
    return found


def _parameters(key: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by method, and beside them the decoding of a recipe."""
    own = {each["name"]: each["parameters"] for each in key["methods"]}
    return own | ({"decoding": key["decoding"]} if "decoding" in key else {})


def publish(gathered: Gathered, output: Path, runs: Sequence[RunPlan]) -> list[Comparison]:
    """Write `metrics.json`, `costs.json`, `report.html` and `figures/` of a job, and the scores of each run.

    Args:
        gathered: from `gather`.
        output: folder of the job.
        runs: of the job.

    Returns:
        The comparisons, for tables.
    """
    comparisons = compare(gathered.outcomes)
    write_json(output / METRICS, summarise(comparisons))
    write_json(output / COSTS, costs(gathered.outcomes))
    rows = {(row.outcome.task, row.outcome.method): row for each in comparisons for row in each.rows}
    for plan, outcome in zip(runs, gathered.outcomes, strict=True):
        row = rows[outcome.task, outcome.method]
        _write_scores(plan, [each for each in comparisons if row in each.rows])
        _write_samples(plan, outcome)
    write_page(output / REPORT, comparisons)
    return comparisons


def write_page(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write the HTML report of some comparisons, and its plots beside it."""
    outcomes = [row.outcome for comparison in comparisons for row in comparison.rows]
    caveats = [SYNTHETIC_CAVEAT] if any("/synthetic" in each.protocol for each in outcomes) else []
    tasks = ", ".join(dict.fromkeys(each.task.upper() for each in outcomes))
    models = ", ".join(dict.fromkeys(each.details["key"]["model"]["id"] for each in outcomes))
    write_report(path, comparisons, title=f"{tasks}: {models}", caveats=caveats)


def _write_scores(plan: RunPlan, comparisons: Sequence[Comparison]) -> None:
    protocol = plan.task.protocol
    content = summarise(comparisons)
    for task in content["tasks"]:
        task["methods"] = [each for each in task["methods"] if each["method"] == plan.variant.label]
    folder = plan.path / "scores"
    folder.mkdir(exist_ok=True)
    mode = protocol.parser or protocol.scorer
    write_json(folder / f"{plan.task.name}-{mode}.json", content)


def _write_samples(plan: RunPlan, outcome: Outcome) -> None:
    """Results sample by sample, and failures."""
    protocol = plan.task.protocol
    mode = protocol.parser or protocol.scorer
    lines = [
        {"id": sample.id, "repeat": int(repeat), "verdict": sample.verdict, "score": sample.score}
        for sample, repeat in zip(outcome.samples, outcome.repeats, strict=True)
    ]
    _write_lines(plan.path / "scores" / f"{plan.task.name}-{mode}.samples.jsonl", lines)
    failed = [line for line in lines if str(line["verdict"]).startswith("failed")]
    _write_lines(plan.path / ERRORS, failed)


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in lines)
    write_text(path, text)


def _costs(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    if not records or not all("time_decode" in record for record in records):
        return {}  # answers that were made from the answers of other runs cost nothing
    memory = [record["peak_memory"] for record in records if record["peak_memory"] is not None]
    return {
        "seconds per sample": fmean(record["time_prefill"] + record["time_decode"] for record in records),
        "forwards per token": fmean(record["forwards_per_token"] for record in records),
        "new tokens per sample": fmean(record["n_new_tokens"] for record in records),
        "peak memory": max(memory, default=None),
    }


def _activity(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], bool]:
    """Sums over all samples for each method, and whether one of them never acted."""
    found: dict[str, Any] = {}
    inactive = False
    for name in dict.fromkeys(name for record in records for name in record["method_info"]):
        rows = [record["method_info"][name] for record in records if name in record["method_info"]]
        sums = {key: sum(row[key] for row in rows) for key in ("steps", "steps_edited", "edited", "eligible")}
        skipped = Counter(row["skipped"] for row in rows if row["skipped"])
        found[name] = {
            "samples": len(rows),
            "samples touched": sum(row["edited"] > 0 for row in rows),
            "site share": sums["edited"] / sums["eligible"] if sums["eligible"] else None,
            "step share": sums["steps_edited"] / sums["steps"] if sums["steps"] else None,
            "skipped": dict(sorted(skipped.items())),
        }
        moved = [Divergence(*(row[name] for name in Divergence._fields)) for row in rows if "kl_steps" in row]
        if moved:
            total = reduce(Divergence.merged, moved)
            found[name] |= total.figures
            inactive |= total.is_still
        inactive |= found[name]["samples touched"] == 0
    return found, inactive
