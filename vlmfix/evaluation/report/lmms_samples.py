"""Answers of a run as samples of lmms-eval, for programs that read those."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmfix.atomic import write_text
from vlmfix.evaluation.analysis.results import Outcome, SampleResult
from vlmfix.evaluation.report.json_summary import rounded
from vlmfix.evaluation.runner.plan import RunPlan
from vlmfix.evaluation.sample import Sample, content_hash
from vlmfix.evaluation.tasks.lmms import KnownToLmms


def write_lmms(folder: Path, run: RunPlan, outcome: Outcome) -> list[Path]:
    """Write `METHOD/DATE_samples_TASK.jsonl`, one file for each split of a run, in lmms-eval's present form.

    A sample without an answer is left out. `token_counts` is left out, too, as this harness counts otherwise.

    Args:
        folder: that receives a folder for the method.
        run: whose answers they are; with several repeats, an answer is a list.
        outcome: of the run, its samples in the order of the run.

    Returns:
        The files.
    """
    splits: dict[str, dict[str, tuple[Sample, list[SampleResult]]]] = {}
    for (sample, _), result in zip(run.identities, outcome.samples, strict=True):
        own = splits.setdefault(str(sample.meta.get("split", "")), {})
        own.setdefault(sample.id, (sample, []))[1].append(result)
    date = re.sub(r"\D", "", str(outcome.details["info"]["started_at"]))
    method = re.sub(r'[/\\:*?"<>|]', "_", outcome.method)
    paths = []
    for split, samples in splits.items():
        task = f"{outcome.task}_{split}" if split else outcome.task
        path = folder / method / f"{date[:8]}_{date[8:]}_samples_{task}.jsonl"
        lines = [
            json.dumps(_line(run, number, sample, results), ensure_ascii=False)
            for number, (sample, results) in enumerate(_in_order(samples))
            if all(each.answer is not None for each in results)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in lines))
        paths.append(path)
    return paths


def _in_order(
    samples: dict[str, tuple[Sample, list[SampleResult]]],
) -> Sequence[tuple[Sample, list[SampleResult]]]:
    """By number, where ids end in one, as the files are in which questions lie."""

    def key(id: str) -> tuple[str, int, str]:
        before, _, own = id.rpartition("/")
        return (before, int(own), "") if own.isdigit() else (before, 0, own)

    return [samples[id] for id in sorted(samples, key=key)]


def _line(run: RunPlan, number: int, sample: Sample, results: Sequence[SampleResult]) -> dict[str, Any]:
    texts = [each.answer or "" for each in results]
    first = results[0]
    if isinstance(run.task, KnownToLmms):
        fields = run.task.lmms_fields(sample, first)
    else:
        own = {"question_id": sample.id.rpartition("/")[2], "score": first.score}
        own |= {"prediction": first.parsed, "ground_truth": sample.target}
        fields = {f"{run.task.name}_score": own}
    return {
        "doc_id": number,
        "target": results[0].target,
        "filtered_resps": texts[0] if len(texts) == 1 else texts,
        "doc_hash": content_hash(sample),
        "input": sample.prompt,
        **rounded(fields),
    }
