"""From records to outcomes, figures and files: counts, failures, costs, and scorers that fail."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import jobs
from tests.support.benchmarks import SHAPES, write_task
from vlmfix.cli.console import err
from vlmfix.evaluation.analysis import comparison
from vlmfix.evaluation.files.atomic import write_json
from vlmfix.evaluation.report.caveats import caveats
from vlmfix.evaluation.report.collect import (
    Gathered,
    gather,
    outcome_of,
    publish,
)
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.host import LocalHost
from vlmfix.evaluation.runner.plan import RunPlan, prepare
from vlmfix.evaluation.runner.progress import ConsoleProgress
from vlmfix.evaluation.runner.run_store import sealed
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.sample import UNREACHED
from vlmfix.evaluation.tasks import scoring
from vlmfix.evaluation.tasks.registry import get_task
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS

KEY = {"model": {"id": "tiny-llava"}, "methods": [{"name": "var", "parameters": {"moved_fraction": 0.4}}]}


@pytest.fixture
def plan(world: Path, tmp_path: Path) -> RunPlan:
    """A run of POPE with an empty directory."""
    settings = {"tasks": ["pope"], "methods": ["var"], "data": str(world), "output": str(tmp_path / "out")}
    job = make_job(settings)
    [task_plan] = prepare(job)
    path = job.output / "pope" / "var-00000000"
    jobs.start(path, KEY)
    return RunPlan(task_plan.task, task_plan.samples, job.variants[0], path)


def ok(plan: RunPlan, index: int, text: str = "Yes", **changes: Any) -> dict[str, Any]:
    """A successful record of a sample."""
    info = {"steps": 2, "steps_edited": 1, "edited": 3, "eligible": 10, "skipped": ""}
    return {
        "id": plan.samples[index].id,
        "repeat": 0,
        "key": "k",
        "status": "ok",
        "text": text,
        "finish": "eos",
        "written_at": 1.0,
        "n_new_tokens": 2,
        "time_prefill": 0.25,
        "time_decode": 0.5,
        "forwards_per_token": 1.0,
        "peak_memory": 1000 + index,
        "method_info": {"var": info},
    } | changes


def failed(plan: RunPlan, index: int, kind: str = "ValueError") -> dict[str, Any]:
    """The record of a failure."""
    return {
        "id": plan.samples[index].id,
        "repeat": 0,
        "key": "k",
        "status": "error",
        "error": f"'{plan.samples[index].image}' is broken",
        "error_type": kind,
        "written_at": 1.0,
    }


def write(plan: RunPlan, *records: dict[str, Any]) -> None:
    path = plan.path / "records" / "0-of-1-000.jsonl"
    path.write_text("".join(json.dumps(sealed(record)) + "\n" for record in records))


def test_counts_and_samples(plan: RunPlan) -> None:
    write(
        plan,
        ok(plan, 0),
        ok(plan, 1, "No", finish="length"),
        ok(plan, 2, "perhaps"),
        failed(plan, 3),
        failed(plan, 4, "FileNotFoundError"),
        failed(plan, 5),
    )
    outcome = outcome_of(plan)
    assert outcome.counts == {"samples": 36, "answered": 3, "failed": 3, "unparsed": 1, "truncated": 1}
    assert outcome.failures == {"FileNotFoundError": 1, "ValueError": 2}
    assert (outcome.task, outcome.protocol, outcome.method) == ("pope", "pope.tiny/synthetic", "var")
    assert outcome.parameters == {"var": {"moved_fraction": 0.4}}
    assert outcome.yes_no
    assert outcome.tradeoff == ("false-yes rate", "recall")
    assert list(outcome.parsers) == ["strict", *(name for name in PARSERS if name != "strict")]
    verdicts = [sample.verdict for sample in outcome.samples[:7]]
    assert verdicts[:3] == ["yes", "no", "unparsed"]
    assert verdicts[3] == f"failed: '{plan.samples[3].image}' is broken"
    assert verdicts[6] == "not answered"
    scores = [sample.score for sample in outcome.samples[:4]]
    targets = [sample.target for sample in plan.samples[:2]]
    assert scores == [float(targets[0] == "yes"), float(targets[1] == "no"), 0.0, None]
    assert [sample.answer for sample in outcome.samples[:4]] == ["Yes", "No", "perhaps", None]
    assert outcome.clusters == [sample.cluster for sample in plan.samples]
    assert outcome.details["key"] == KEY


def test_reasoning_that_did_not_end_is_counted_and_noted(plan: RunPlan) -> None:
    write(plan, ok(plan, 0), failed(plan, 1, UNREACHED), failed(plan, 2, UNREACHED))
    outcome = outcome_of(plan)
    assert (outcome.counts["answered"], outcome.counts["failed"]) == (1, 2)
    notes = caveats(comparison.compare([outcome])[0])
    assert "var: 2 answers were not reached, as the reasoning did not end within the limit." in notes
    assert outcome.samples[1].answer is None


def test_an_empty_answer_is_an_answer(plan: RunPlan) -> None:
    write(plan, ok(plan, 0, ""))
    outcome = outcome_of(plan)
    assert outcome.counts["answered"] == 1
    assert (outcome.samples[0].answer, outcome.samples[0].verdict) == ("", "unparsed")


def test_a_success_after_a_failure_counts_once(plan: RunPlan) -> None:
    write(plan, failed(plan, 0), ok(plan, 0), failed(plan, 0))
    outcome = outcome_of(plan)
    assert (outcome.counts["answered"], outcome.counts["failed"]) == (1, 0)
    assert outcome.failures == {}


def test_costs(plan: RunPlan) -> None:
    write(
        plan,
        ok(plan, 0),
        ok(plan, 1, n_new_tokens=5, time_decode=1.5, forwards_per_token=3.0),
        failed(plan, 2),
    )
    assert outcome_of(plan).costs == {
        "seconds per sample": (0.75 + 1.75) / 2,
        "forwards per token": 2.0,
        "new tokens per sample": 3.5,
        "peak memory": 1001,
    }


def test_costs_that_nobody_knows(plan: RunPlan) -> None:
    write(plan, ok(plan, 0, peak_memory=None))
    assert outcome_of(plan).costs["peak memory"] is None
    write(plan, failed(plan, 0))
    assert outcome_of(plan).costs == {}


def test_activity_adds_up(plan: RunPlan) -> None:
    idle = {"steps": 4, "steps_edited": 0, "edited": 0, "eligible": 30, "skipped": "no_image"}
    write(plan, ok(plan, 0), ok(plan, 1, method_info={"var": idle}), failed(plan, 2))
    outcome = outcome_of(plan)
    assert outcome.activity == {
        "var": {
            "samples": 2,
            "samples touched": 1,
            "site share": 3 / 40,
            "step share": 1 / 6,
            "skipped": {"no_image": 1},
        }
    }
    assert not outcome.inactive
    write(plan, ok(plan, 0, method_info={"var": idle}))
    assert outcome_of(plan).inactive
    nothing = dict.fromkeys(("steps", "steps_edited", "edited", "eligible"), 0) | {"skipped": ""}
    write(plan, ok(plan, 0, method_info={"var": nothing}))
    assert outcome_of(plan).activity["var"]["site share"] is None
    write(plan, ok(plan, 0, method_info={}))
    assert (outcome_of(plan).activity, outcome_of(plan).inactive) == ({}, False)


def test_how_far_a_method_moved_the_next_token(plan: RunPlan) -> None:
    info = {"steps": 2, "steps_edited": 2, "edited": 2, "eligible": 2, "skipped": ""}
    moved = {"kl": 0.5, "kl_cut": 0.25, "kl_max": 0.375, "argmax_changed": 1, "kl_steps": 2}
    write(
        plan,
        ok(plan, 0, method_info={"var": info | moved}),
        ok(plan, 1, method_info={"var": info | moved | {"kl": 0.0, "kl_cut": 0.0, "kl_max": 0.0}}),
    )
    activity = outcome_of(plan).activity["var"]
    assert (activity["kl_mean"], activity["kl_cut"], activity["kl_max"]) == (0.125, 0.0625, 0.375)
    assert (activity["argmax_changed"], activity["kl_steps"]) == (0.5, 4)
    still = moved | {"kl": 1e-9, "kl_max": 1e-9}
    write(plan, ok(plan, 0, method_info={"var": info | still}))
    assert outcome_of(plan).inactive


def test_nothing_yet(plan: RunPlan) -> None:
    gathered = gather([plan])
    assert (gathered.missing, gathered.total) == (36, 36)
    outcome = gathered.outcomes[0]
    assert outcome.counts["answered"] == 0
    assert all(not metric.is_defined for metric in outcome.metrics)


def test_failures_are_not_missing(plan: RunPlan) -> None:
    write(plan, *(failed(plan, index) for index in range(36)))
    gathered = gather([plan])
    assert (gathered.missing, gathered.total) == (0, 36)
    publish(gathered, plan.path.parents[1], [plan])
    [method] = jobs.read(plan.path.parents[1] / "metrics.json")["tasks"][0]["methods"]
    assert method["failures"] == {"ValueError": 36}
    assert all(figure["undefined"] for figure in method["metrics"])


def test_repeats_follow_each_other(world: Path, tmp_path: Path) -> None:
    protocol = "pope.tiny+temperature=1.0+seeds=[0, 1]"
    job = make_job({"tasks": "pope", "protocol": protocol, "data": str(world), "output": str(tmp_path)})
    [task_plan] = prepare(job)
    plan = RunPlan(task_plan.task, task_plan.samples, job.variants[0], tmp_path / "run")
    jobs.start(plan.path, KEY)
    write(plan, ok(plan, 0, "Yes"), ok(plan, 0, "No", repeat=1))
    outcome = outcome_of(plan)
    assert [sample.answer for sample in outcome.samples[:3]] == ["Yes", "No", None]
    assert outcome.repeats.tolist() == [0, 1] * 36
    assert outcome.counts["samples"] == 72


def test_published_files(plan: RunPlan) -> None:
    output = plan.path.parents[1]
    write(plan, ok(plan, 0), failed(plan, 1), ok(plan, 2, "strange “answer”"))
    publish(gather([plan]), output, [plan])
    scores = jobs.read(plan.path / "scores" / "pope-strict.json")
    metrics = jobs.read(output / "metrics.json")
    assert scores == metrics
    lines = [
        json.loads(line)
        for line in (plan.path / "scores" / "pope-strict.samples.jsonl").read_text().splitlines()
    ]
    assert [line["id"] for line in lines] == [sample.id for sample in plan.samples]
    assert set(lines[0]) == {"id", "repeat", "verdict", "score"}
    [error] = [json.loads(line) for line in (plan.path / "errors.jsonl").read_text().splitlines()]
    assert error["id"] == plan.samples[1].id
    assert error["verdict"].startswith("failed: ")
    assert "partial (3 of 36 samples)" in " ".join(metrics["tasks"][0]["caveats"])
    assert "1 of 36 samples failed (1 ValueError)" in " ".join(metrics["tasks"][0]["caveats"])
    assert (output / "report.html").stat().st_size > 10_000
    costs = jobs.read(output / "costs.json")["methods"]
    assert costs[0]["costs"]["new tokens per sample"] == 2


def test_scores_of_a_run_have_its_method_alone(plan: RunPlan) -> None:
    output = plan.path.parents[1]
    other_path = output / "pope" / "greedy-00000000"
    jobs.start(other_path, KEY | {"methods": []})
    greedy = make_job({"tasks": "pope", "output": str(output)}).variants[0]
    other = RunPlan(plan.task, plan.samples, greedy, other_path)
    for each in (other, plan):
        write(each, *(ok(each, index) for index in range(36)))
    publish(gather([other, plan]), output, [other, plan])
    found = jobs.read(plan.path / "scores" / "pope-strict.json")["tasks"]
    assert [[method["method"] for method in task["methods"]] for task in found] == [["var"]]
    assert found[0]["methods"][0]["metrics"][0]["difference"] is not None


def test_metrics_do_not_name_the_output(plan: RunPlan, tmp_path: Path) -> None:
    """Two outputs of the same answers have the same metrics, failures included."""
    write(plan, ok(plan, 0), failed(plan, 1))
    output = plan.path.parents[1]
    publish(gather([plan]), output, [plan])
    moved = shutil.copytree(output, tmp_path / "elsewhere")
    again = RunPlan(plan.task, plan.samples, plan.variant, moved / plan.path.relative_to(output))
    publish(gather([again]), moved, [again])
    assert jobs.metrics(moved) == jobs.metrics(output)
    assert str(tmp_path) not in jobs.metrics(output).decode()


def breaking(text: str) -> Callable[[str, str], str]:
    def parser(said: str, target: str) -> str:
        if said.strip() == text:
            raise ZeroDivisionError("division by zero")
        return "yes"

    return parser


def test_a_scorer_that_fails_names_the_sample_and_loses_nothing(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(plan, ok(plan, 0), ok(plan, 1, "No"))
    before = jobs.records(plan.path)
    with monkeypatch.context() as patched:
        patched.setitem(PARSERS, "strict", breaking("No"))
        message = (
            rf"^{plan.samples[1].id}: scoring fails \(ZeroDivisionError: division by zero\); the answers"
        )
        with pytest.raises(ValueError, match=message):
            gather([plan])
    assert jobs.records(plan.path) == before
    assert gather([plan]).outcomes[0].counts["answered"] == 2


def test_a_scorer_that_fails_at_work_loses_nothing(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(
        {"tasks": "pope", "data": str(world), "output": str(tmp_path), "limit": 12, "batch_size": 3}
    )
    said: dict[str, int] = {}

    def parser(text: str, target: str) -> str:
        said[text] = said.get(text, 0) + 1
        if said[text] == 2:
            raise ZeroDivisionError
        return "yes"

    with monkeypatch.context() as patched:
        patched.setitem(PARSERS, "strict", parser)
        runs = execute(job, prepare(job), LocalHost(*loaded), Shard(), ConsoleProgress(err, quiet=True))
    records = jobs.records(tmp_path)
    assert len(records) == 12
    assert {record["status"] for record in records} == {"ok"}
    assert gather(runs).outcomes[0].counts["answered"] == 12


def test_an_answer_is_judged_once_by_the_same_scorer(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"tasks": "pope", "data": str(world), "output": str(tmp_path), "limit": 12}
    job = make_job(settings | {"baselines": False})
    judged: list[str] = []

    def parser(text: str, target: str) -> str:
        judged.append(text)
        return "yes"

    monkeypatch.setitem(PARSERS, "strict", parser)
    runs = execute(job, prepare(job), LocalHost(*loaded), Shard(), ConsoleProgress(err, quiet=True))
    assert len(judged) == 12
    records = jobs.records(tmp_path)
    assert {record["verdict"] for record in records} == {"yes"}
    assert [record["score"] for record in records] == [
        float(each.target == "yes")
        for record in records
        for each in runs[0].samples
        if each.id == record["id"]
    ]
    before = gather(runs).outcomes[0]
    assert len(judged) == 12
    assert {sample.verdict for sample in before.samples} == {"yes"}
    monkeypatch.setattr(scoring, "scorer_version", lambda task: "another")
    monkeypatch.setitem(PARSERS, "strict", lambda text, target: "no")
    assert {sample.verdict for sample in gather(runs).outcomes[0].samples} == {"no"}


def test_the_version_of_a_scorer_is_that_of_its_files(tmp_path: Path) -> None:
    write_task(tmp_path / "one", "dogs", SHAPES)
    folder = write_task(tmp_path / "two", "dogs", SHAPES)
    versions = [scoring.scorer_version(get_task("dogs", [tmp_path / name])) for name in ("one", "two")]
    assert versions[0] == versions[1] != scoring.scorer_version(get_task("pope"))
    (folder / "words.py").write_text("WORD = 'dog'")
    scoring.scorer_version.cache_clear()
    assert scoring.scorer_version(get_task("dogs", [tmp_path / "two"])) != versions[0]


def test_publishers_at_the_same_time(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last workers of a job may end together, even with the same number on different hosts."""
    output = plan.path.parents[1]
    write(plan, *(ok(plan, index) for index in range(36)))
    gathered = gather([plan])
    publish(gathered, output, [plan])
    expected = jobs.metrics(output)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(2):
                    publish(gathered, output, [plan])
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert jobs.metrics(output) == expected
    assert not [path for path in output.rglob(".*") if path.is_file()]


def test_a_run_that_is_gone(plan: RunPlan) -> None:
    shutil.rmtree(plan.path)
    with pytest.raises(FileNotFoundError, match=r"is no run directory: it has no manifest\.json"):
        gather([plan])


def test_gathered_outcomes_can_be_compared(plan: RunPlan) -> None:
    write(plan, *(ok(plan, index) for index in range(36)))
    gathered = gather([plan])
    assert isinstance(gathered, Gathered)
    [compared] = comparison.compare(gathered.outcomes)
    estimate = compared.rows[0].figures[0].estimate
    targets = [sample.target == "yes" for sample in plan.samples]
    assert estimate.value == pytest.approx(np.mean(targets))
    write_json(plan.path / "x.json", estimate.value)
