"""Exports: what they hold, and that other commands read them back to the same figures."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from vlmfix.evals.chair.score_command import score_file as score_chair
from vlmfix.evals.chair.vocabulary import Vocabulary
from vlmfix.evals.pope.score_command import score_files as score_pope
from vlmfix.evals.vqa.score_command import score_files as score_vqa

from vlmfix.evaluation.analysis.comparison import Comparison, compare
from vlmfix.evaluation.analysis.results import Metric, Outcome
from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.report.collect import gather
from vlmfix.evaluation.report.export import check_exports, export
from vlmfix.evaluation.report.latex import latex_tables
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.plan import RunPlan, prepare
from vlmfix.evaluation.runner.run_store import RunStore

SAID: dict[str, Callable[[int], str]] = {
    "pope": lambda number: ("Yes, sure.", "no", "maybe", "yes\n")[number % 4],
    "chair": lambda number: f"A dog and a cup, {number} cars.",
    "vqa": lambda number: ("Yes", "2", "red", "no,")[number % 4],
}
Job = tuple[list[RunPlan], list[Outcome], list[Comparison]]


def answered(plan: RunPlan, *, method: str, shift: int = 0, failed: int | None = None) -> RunPlan:
    """A run with a record of every sample, made here."""
    info = {"started_at": "2026-01-02T03:04:05Z"}
    key = {"model": {"id": "m"}, "methods": [{"name": method, "parameters": {}}]}
    run = RunStore.start(plan.path, key, {"torch": "2"}, info=info)
    records: list[dict[str, Any]] = []
    for number, (sample, repeat) in enumerate(plan.identities):
        head = {"id": sample.id, "repeat": repeat, "key": "k", "written_at": 1.0}
        if number == failed:
            records.append(head | {"status": "error", "error": "broken", "error_type": "OSError"})
            continue
        records.append(
            head
            | {
                "status": "ok",
                "text": SAID[plan.task.name](number + shift * (number % 3 == 0)),
                "finish": "eos",
                "n_new_tokens": 2,
                "time_prefill": 0.25,
                "time_decode": 0.5,
                "forwards_per_token": 1.0,
                "peak_memory": None,
                "method_info": {},
            }
        )
    run.append(records, "0-of-1")
    run.close()
    return plan


@pytest.fixture(scope="module")
def job(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two methods on three tasks of six scenes."""
    output = tmp_path_factory.mktemp("job")
    settings = {"tasks": list(SAID), "methods": ["greedy", "var"], "data": str(world), "output": str(output)}
    made = make_job(settings)
    plans = [
        answered(
            RunPlan(each.task, each.samples, variant, output / each.task.name / f"{variant.label}-00000000"),
            method=variant.label,
            shift=place,
        )
        for each in prepare(made)
        for place, variant in enumerate(made.variants)
    ]
    outcomes = gather(plans).outcomes
    return plans, outcomes, compare(outcomes)


def value(outcome: Outcome, name: str, group: str = "", parser: str | None = None) -> float:
    metrics = outcome.metrics if parser is None else outcome.parsers[parser]
    [metric] = [each for each in metrics if (each.name, each.group) == (name, group)]
    return metric.value


def test_samples_of_lmms_eval_come_back_to_the_same_figures(job: Job, world: Path, tmp_path: Path) -> None:
    plans, outcomes, comparisons = job
    written = export(tmp_path / "lmms", comparisons, plans, outcomes)
    assert len(written) == 2 * (3 + 1 + 1)
    assert written[0].relative_to(tmp_path).as_posix() == (
        "lmms/greedy/20260102_030405_samples_pope_adversarial.jsonl"
    )
    for outcome in outcomes:
        own = [
            path for path in written if path.parent.name == outcome.method and f"_{outcome.task}" in path.name
        ]
        if outcome.task == "pope":
            labels = [world / f"synthetic_{path.stem[24:]}.json" for path in own]
            for report in (score_pope(own, labels, ["strict", "official"]), score_pope(own, [], ["strict"])):
                for split in report.splits:
                    name = split.name.rpartition("_")[2]
                    for parser, score in split.scores.items():
                        assert score.accuracy == pytest.approx(value(outcome, "accuracy", name, parser))
                        assert score.f1 == pytest.approx(value(outcome, "F1", name, parser))
                assert report.mean["strict"]["accuracy"] == pytest.approx(value(outcome, "accuracy"))
                assert any("read as: samples of lmms-eval" in note for note in report.notes)
        elif outcome.task == "chair":
            files = [world / "instances.json"], [world / "captions.json"]
            chair = score_chair(own[0], *files, vocabulary=Vocabulary(variant="official")).score
            assert (chair.chair_s, chair.chair_i) == (value(outcome, "CHAIRs"), value(outcome, "CHAIRi"))
            assert (chair.recall, chair.f1) == pytest.approx((value(outcome, "recall"), value(outcome, "F1")))
        else:
            vqa = score_vqa(own[0], world / "answers.json", world / "questions.json", mode="official")
            official = value(outcome, "accuracy", parser="official")
            assert vqa.score.overall.accuracy == pytest.approx(official)


def test_a_line_of_lmms_eval(job: Job, tmp_path: Path) -> None:
    plans, outcomes, comparisons = job
    written = {path.name[24:]: path for path in export(tmp_path / "lmms", comparisons, plans, outcomes)}
    lines = [json.loads(line) for line in written["pope_random.jsonl"].read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == list(range(len(lines)))
    ids = [int(line["pope_accuracy"]["question_id"]) for line in lines]
    assert ids == sorted(ids)
    assert set(lines[0]) == {"doc_id", "target", "filtered_resps", "doc_hash", "input", "pope_accuracy"}
    assert {line["pope_accuracy"]["ground_truth"] for line in lines} == {"yes", "no"}
    chair = json.loads(written["chair.jsonl"].read_text().splitlines()[0])
    assert chair["coco_cap_chair_i"]["pred"] == ["dog", "cup", "car"]
    vqa = json.loads(written["vqa.jsonl"].read_text().splitlines()[3])
    assert (vqa["filtered_resps"], vqa["submission"]["answer"]) in {
        ("Yes", "yes"),
        ("no,", "no"),
        ("2", "2"),
        ("red", "red"),
    }


def test_failed_samples_and_repeats(world: Path, tmp_path: Path) -> None:
    settings = {
        "tasks": ["vqa"],
        "methods": ["greedy"],
        "data": str(world),
        "output": str(tmp_path / "out"),
        "protocol": "vqa.tiny+temperature=1.0+seeds=[0,1]",
    }
    made = make_job(settings)
    [task_plan] = prepare(made)
    plan = RunPlan(
        task_plan.task, task_plan.samples, made.variants[0], tmp_path / "out" / "vqa" / "greedy-00000000"
    )
    outcomes = gather([answered(plan, method="greedy", failed=3)]).outcomes
    samples = len(plan.samples)
    [path] = export(tmp_path / "lmms", compare(outcomes), [plan], outcomes)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == samples - 1
    assert [len(line["filtered_resps"]) for line in lines] == [2] * (samples - 1)
    with pytest.raises(ValueError, match="list of 2 texts; choose one with --sample"):
        score_vqa(path, world / "answers.json")
    assert score_vqa(path, world / "answers.json", keys=Keys(sample=2)).counts["answered"] == samples - 1
    [table] = export(tmp_path / "all.csv", compare(outcomes), [plan], outcomes)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * samples
    failed = [row for row in rows if row["verdict"].startswith("failed: broken")]
    assert [(row["answer"], row["parsed"], row["score"], row["repeat"]) for row in failed] == [
        ("", "", "", "1")
    ]


@pytest.mark.parametrize("name", ["all.csv", "sub/all.parquet"])
def test_tables_of_all_answers(name: str, job: Job, tmp_path: Path) -> None:
    plans, outcomes, comparisons = job
    [path] = export(tmp_path / name, comparisons, plans, outcomes)
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    else:
        rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).to_list()
    assert len(rows) == sum(len(outcome.samples) for outcome in outcomes)
    for outcome in outcomes:
        own = [row for row in rows if (row["task"], row["method"]) == (outcome.task, outcome.method)]
        assert [row["answer"] for row in own] == [each.answer for each in outcome.samples]
        assert [float(row["score"]) for row in own] == [each.score for each in outcome.samples]
        for row, each in zip(own, outcome.samples, strict=True):
            read = row["parsed"] if isinstance(each.parsed, str) else json.loads(row["parsed"] or "null")
            assert read == each.parsed
    assert {row["split"] for row in rows} == {"", "random", "popular", "adversarial"}
    assert "/" not in "".join(row["image"] for row in rows)


def test_tables_of_latex(job: Job, tmp_path: Path) -> None:
    plans, outcomes, comparisons = job
    [path] = export(tmp_path / "table.tex", comparisons, plans, outcomes)
    text = path.read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 3
    assert r"method & CHAIRs, \% & CHAIRi, \% & recall, \% & precision, \% & F1, \% \\" in text
    accuracy = f"{100 * value(outcomes[0], 'accuracy'):.1f}"
    assert f"greedy & {accuracy} " in text
    assert "% no mark for var: only 6 images; a mark needs 10" in text
    assert "$^{*}$" not in text


def test_marks_in_latex(job: Job) -> None:
    """Of a difference on each of thirty images, and names with special characters."""
    _, outcomes, _ = job
    result = outcomes[0].samples[0]

    def outcome(method: str, right: float) -> Outcome:
        samples = [
            dataclasses.replace(result, id=f"s/{n:02d}", cluster=str(n), score=right) for n in range(30)
        ]
        metric = Metric("accuracy", np.full((1, 30), right), np.ones((1, 30)), "", "higher")
        return dataclasses.replace(
            outcomes[0],
            method=method,
            samples=samples,
            repeats=np.zeros(30, dtype=int),
            metrics=[metric],
            parsers={},
            objects={},
            counts={"samples": 30, "answered": 30},
            failures={},
            baseline_of=None,
        )

    text = latex_tables(compare([outcome("greedy", 0.0), outcome("a_b&c{1}~^\\", 1.0)]))
    assert (
        r"a\_b\&c\{1\}\textasciitilde{}\textasciicircum{}\textbackslash{} & 100.0$^{*}$ {\scriptsize" in text
    )
    assert "no mark" not in text


def test_names_that_say_no_format(tmp_path: Path) -> None:
    check_exports(
        [tmp_path / "new", tmp_path / "a.csv", tmp_path / "b.PARQUET", tmp_path, tmp_path / "c.tex"]
    )
    with pytest.raises(
        ValueError, match=r"all\.xlsx: '\.xlsx' is none of \.csv \(all answers\), .*name another file"
    ):
        check_exports([tmp_path / "all.xlsx"])
    (tmp_path / "file").write_text("")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(ValueError, match="it is a file; name another one"):
        check_exports([tmp_path / "file"])
    with pytest.raises(ValueError, match="it is a folder; name another one"):
        check_exports([tmp_path / "d.csv"])
