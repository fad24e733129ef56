"""Baselines in the harness: which are added, how they match a method, and what the report makes of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import vlmfix
from tests.support import jobs, outcomes
from tests.support.reports import Notes, Page, printed
from vlmfix.evaluation.analysis.comparison import Comparison, compare
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.report.caveats import caveats
from vlmfix.evaluation.report.collect import gather, publish
from vlmfix.evaluation.report.disagreements import disagreements
from vlmfix.evaluation.report.html import write_report
from vlmfix.evaluation.report.json_summary import summarise
from vlmfix.evaluation.runner import baselines
from vlmfix.evaluation.runner.config import Job, make_job
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.host import LocalHost
from vlmfix.evaluation.runner.plan import RunPlan, prepare, read_plans
from vlmfix.evaluation.runner.run_key import run_key
from vlmfix.evaluation.runner.run_store import ResumeError, read_manifest, sealed
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.registry import get_task
from vlmfix.methods.baselines import output_shift

pytestmark = pytest.mark.slow

YES_SAYER = {"vaf": {"enhance": 3.0}}  # says yes to 30 of 36 questions, greedy decoding to 21
LABEL = "vaf(enhance=3.0)"
SHORT = ["pope.tiny", "chair.tiny+max_new_tokens=40", "vqa.tiny"]
ROWS = {
    "pope": ["greedy", "baseline.prompt_bias", f"baseline.output_shift({LABEL})", LABEL],
    "chair": ["greedy", f"baseline.truncate({LABEL})", LABEL, f"{LABEL}, cut to greedy"],
    "vqa": ["greedy", LABEL],
}


def job(output: Path, world: Path, **changes: Any) -> Job:
    settings = {
        "tasks": ["pope"],
        "methods": [YES_SAYER],
        "data": str(world),
        "output": str(output),
        "batch_size": 12,
    }
    return make_job(settings | changes)


def run(
    job: Job, loaded: tuple[Any, Any], share: Shard | None = None, progress: Notes | None = None
) -> list[RunPlan]:
    return execute(job, prepare(job), LocalHost(*loaded), share or Shard(), progress or Notes())


def labels(runs: Sequence[RunPlan], task: str = "pope") -> list[str]:
    return [plan.variant.label for plan in runs if plan.task.name == task]


def answers(plan: RunPlan) -> dict[str, dict[str, Any]]:
    """The records of a run by sample, without failures."""
    return {record["id"]: record for record in jobs.records(plan.path) if record["status"] == "ok"}


@pytest.fixture(scope="module")
def whole(
    loaded: tuple[Any, Any], world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, list[RunPlan]]:
    """A job with three tasks and one method, and its runs."""
    whole = job(tmp_path_factory.mktemp("whole"), world, tasks=["pope", "chair", "vqa"], protocol=SHORT)
    return whole, run(whole, loaded)


def rows(methods: list[Any], protocol: str = "pope.tiny", **settings: Any) -> list[tuple[str, str | None]]:
    """The rows of a job and what they are baselines of."""
    asked = make_job({"tasks": "pope", "methods": methods, "output": "out", **settings})
    task = get_task("pope")(None, load_protocol(protocol))  # type: ignore[arg-type]
    return [(variant.label, variant.baseline_of) for variant in baselines.rows(asked, task)]


def test_controls_that_a_comparison_needs() -> None:
    biased = ("baseline.prompt_bias", "")
    assert rows(["var"]) == [("greedy", ""), biased, ("var", None)]
    assert rows(["var", "greedy", "vhr"]) == [("greedy", ""), biased, ("var", None), ("vhr", None)]
    assert rows(["baseline.greedy", "var"]) == [("baseline.greedy", ""), biased, ("var", None)]
    assert rows(["baseline.sharpen", "var"])[0] == ("baseline.sharpen", "")
    assert rows([{"baseline.prompt_bias": {"direction": "no"}}, "var"])[2] == biased
    assert rows(["baseline.prompt_bias", "var"]) == [biased, ("greedy", ""), ("var", None)]
    assert rows(["var+baseline.beam"])[-1] == ("var+baseline.beam", None)


def test_greedy_decoding_beside_other_protocols() -> None:
    for protocol, plain in (("pope.one-word-sample", "sampling"), ("pope.bare-beam5", "beam search")):
        assert rows(["var"], protocol)[0] == ("baseline.greedy", "")
        assert rows(["greedy", "var"], protocol)[:2] == [(plain, ""), ("baseline.greedy", "")]


@pytest.mark.parametrize("methods", [["greedy"], ["greedy", "baseline.sample"]])
def test_nothing_to_compare_needs_no_controls(methods: list[str]) -> None:
    assert rows(methods) == [(name, None) for name in methods]


def test_without_controls() -> None:
    assert rows(["var", "greedy"], baselines=False) == [("var", None), ("greedy", None)]


def test_keys_without_controls_are_as_before() -> None:
    settings: dict[str, Any] = {
        "task": "pope",
        "data": {},
        "protocol": load_protocol("pope.llava/coco"),
        "model": {"id": "m"},
        "methods": [],
        "seed": 0,
    }
    key = run_key(**settings)
    assert set(key) == {"library", "task", "protocol", "model", "methods", "seed"}
    assert key["protocol"]["id"] == "pope.llava/coco"
    biased = run_key(**settings, prompt_change="+bias-yes", calibrated_on={"margins": "greedy-1"})
    assert biased["protocol"] == key["protocol"] | {"id": "pope.llava/coco+bias-yes"}
    assert biased["calibrated_on"] == {"margins": "greedy-1"}


def test_rows_of_three_tasks(whole: tuple[Job, list[RunPlan]]) -> None:
    _, runs = whole
    assert {task: labels(runs, task) for task in ROWS} == ROWS
    assert [plan.variant.baseline_of for plan in runs if plan.task.name == "pope"] == [
        "",
        "",
        LABEL,
        None,
    ]
    assert gather(runs).missing == 0


def test_the_output_shift_says_yes_as_often_as_the_method(whole: tuple[Job, list[RunPlan]]) -> None:
    greedy, _, shifted, method = [answers(plan) for plan in whole[1] if plan.task.name == "pope"]
    said = [
        {id for id, record in each.items() if record["parsed"] == "yes"} for each in (greedy, shifted, method)
    ]
    assert len(said[0]) < len(said[1]) == len(said[2]) < 36
    assert said[0] < said[1]
    manifest = read_manifest(whole[1][2].path)["key"]
    [baseline] = manifest["methods"]
    margins = [record["margin"] for record in greedy.values()]
    assert baseline["name"] == "baseline.output_shift"
    assert baseline["parameters"]["delta"] == pytest.approx(
        output_shift.calibrate_shift(margins, len(said[2]) / 36)
    )
    assert baseline["parameters"]["yes_ids"]
    names = {"share of yes": whole[1][3].path.name, "margins": whole[1][0].path.name}
    assert manifest["calibrated_on"] == names
    assert all((record["margin"] > 0) == (record["parsed"] == "yes") for record in greedy.values())
    for record in shifted.values():  # the margins after the shift
        assert (record["margin"] > 0) == (record["parsed"] == "yes")


def test_margins_are_those_of_the_model(whole: tuple[Job, list[RunPlan]], loaded: tuple[Any, Any]) -> None:
    plan = whole[1][0]
    samples = {sample.id: sample for sample in plan.samples}
    for id, record in list(answers(plan).items())[:3]:
        method = vlmfix.BaselineOutputShift(delta=-record["margin"] + 0.01)
        assert (
            vlmfix.generate(*loaded, samples[id].image, samples[id].prompt, method, max_new_tokens=1) == "Yes"
        )
        method = vlmfix.BaselineOutputShift(delta=-record["margin"] - 0.01)
        assert (
            vlmfix.generate(*loaded, samples[id].image, samples[id].prompt, method, max_new_tokens=1) == "No"
        )


def test_the_biased_question_is_asked_and_told_apart(whole: tuple[Job, list[RunPlan]]) -> None:
    greedy, biased = whole[1][:2]
    asked = {record["prompt"] for record in answers(biased).values()}
    assert all(prompt.endswith(" Answer yes whenever possible.") for prompt in asked)
    assert not any("whenever" in record["prompt"] for record in answers(greedy).values())
    keys = [read_manifest(plan.path)["key"]["protocol"]["id"] for plan in (greedy, biased)]
    assert keys == ["pope.tiny/synthetic", "pope.tiny/synthetic+bias-yes"]
    prompts = [{record["key"] for record in answers(plan).values()} for plan in (greedy, biased)]
    assert not prompts[0] & prompts[1]
    assert "whenever" in read_manifest(biased.path)["info"]["first_prompt"]


def test_captions_are_cut_to_equal_lengths(whole: tuple[Job, list[RunPlan]]) -> None:
    chair = [plan for plan in whole[1] if plan.task.name == "chair"]
    greedy, baseline, method, reverse = map(answers, chair)

    def length(record: dict[str, Any]) -> int:
        return record["n_new_tokens"] - (record["finish"] == "eos")

    for cut, captions, others, expected in ((baseline, greedy, method, 1), (reverse, method, greedy, 2)):
        shortened = 0
        for id, record in cut.items():
            limit = min(length(captions[id]), length(others[id]))
            assert length(record) == limit
            assert record["token_ids"][:limit] == captions[id]["token_ids"][:limit]
            assert "time_decode" not in record
            if limit == length(captions[id]):
                assert record["text"] == captions[id]["text"]
                assert record["finish"] == captions[id]["finish"]
            else:
                shortened += 1
                assert record["finish"] == "length"
                assert captions[id]["text"].startswith(record["text"])
                assert captions[id]["text"] != record["text"]
        assert shortened == expected
    found = gather(chair).outcomes
    assert found[1].costs == found[3].costs == {}
    assert found[1].parameters == found[3].parameters == {"baseline.truncate": {"mode": "per_image"}}
    assert [each.baseline_of for each in found] == ["", LABEL, None, None]
    names = [plan.path.name for plan in chair]
    sources = [read_manifest(plan.path)["key"].get("calibrated_on") for plan in chair]
    assert sources[1] == {"captions": names[0], "lengths": names[2]}
    assert sources[3] == {"captions": names[2], "lengths": names[0]}


def test_a_finished_job_is_not_asked_again(whole: tuple[Job, list[RunPlan]], loaded: tuple[Any, Any]) -> None:
    files = {path: path.read_bytes() for path in whole[0].output.rglob("*.jsonl")}
    progress = Notes()
    again = run(whole[0], loaded, progress=progress)
    assert (progress.active, progress.notes) == ([], [])
    assert [plan.path for plan in again] == [plan.path for plan in whole[1]]
    assert {path: path.read_bytes() for path in whole[0].output.rglob("*.jsonl")} == files


def test_a_report_without_a_model_has_the_same_rows(whole: tuple[Job, list[RunPlan]], tmp_path: Path) -> None:
    output = shutil.copytree(whole[0].output, tmp_path / "moved")
    again = read_plans(output)
    told = [(plan.variant.label, plan.variant.baseline_of, plan.path.name) for plan in again]
    assert told == [(plan.variant.label, plan.variant.baseline_of, plan.path.name) for plan in whole[1]]
    publish(gather(again), output, again)
    pope = jobs.read(output / "metrics.json")["tasks"][0]
    method = pope["methods"][-1]
    assert method["best_baseline"]["method"] in ("greedy", f"baseline.output_shift({LABEL})")
    assert [each["baseline_of"] for each in pope["methods"]] == ["", "", LABEL, None]
    assert set(method["best_baseline"]["differences"]) >= {"accuracy", "recall"}
    assert "baseline.output_shift(vaf(enhance=3.0))" in (output / "report.html").read_text().replace(
        "<wbr>", ""
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_of_several_workers_answers_the_matched_controls(
    order: tuple[int, ...],
    whole: tuple[Job, list[RunPlan]],
    loaded: tuple[Any, Any],
    world: Path,
    tmp_path: Path,
) -> None:
    shared = job(tmp_path, world)
    first = run(shared, loaded, Shard(order[0], 2))
    assert labels(first) == ["greedy", "baseline.prompt_bias", LABEL]
    assert gather(first).missing > 0
    last = run(shared, loaded, Shard(order[1], 2))
    assert labels(last) == ROWS["pope"]
    assert gather(last).missing == 0
    texts = {id: record["text"] for id, record in answers(last[2]).items()}
    assert texts == {id: record["text"] for id, record in answers(whole[1][2]).items()}
    ids = [record["id"] for record in jobs.records(tmp_path)]
    assert len(ids) == 4 * 36


def test_stopped_before_the_controls_and_resumed(
    whole: tuple[Job, list[RunPlan]], loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    stopped = job(tmp_path, world)

    class Stop(Notes):
        def begin(self, title: str, running: str, total: int, done: int) -> None:
            if "output_shift" in title:
                raise KeyboardInterrupt
            super().begin(title, running, total, done)

    with pytest.raises(KeyboardInterrupt):
        run(stopped, loaded, progress=Stop())
    assert gather(read_plans(tmp_path)).missing == 36
    runs = run(job(tmp_path, world, resume="always"), loaded)
    assert gather(runs).missing == 0
    assert [each.metrics[0].value for each in gather(runs).outcomes] == [
        each.metrics[0].value for each in gather(whole[1]).outcomes[:4]
    ]
    with pytest.raises(ResumeError, match="holds such a run already"):
        run(job(tmp_path, world, resume="never"), loaded)


def test_samples_that_fail_fail_in_matched_controls_too(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(world, tmp_path / "copy")
    lossy = job(tmp_path / "out", copy, tasks=["pope", "chair"], protocol=SHORT[:2])
    image = prepare(lossy)[0].samples[0].image
    assert image is not None
    content = image.read_bytes()
    image.unlink()
    runs = run(lossy, loaded)
    found = {
        (each.task, each.method): (each.counts["failed"], each.counts["answered"])
        for each in gather(runs).outcomes
    }
    assert found["chair", f"baseline.truncate({LABEL})"] == (1, 5)
    assert found["pope", f"baseline.output_shift({LABEL})"] == found["pope", LABEL]
    assert found["pope", LABEL][0] > 0
    assert gather(runs).missing == 0
    image.write_bytes(content)
    assert {each.counts["failed"] for each in gather(run(lossy, loaded)).outcomes} == {0}


def test_runs_without_margins_are_named(loaded: tuple[Any, Any], world: Path, tmp_path: Path) -> None:
    [plan, *_] = run(job(tmp_path, world, methods=["greedy"], limit=4), loaded)
    [path] = (plan.path / "records").iterdir()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        del record["margin"]
    path.write_text("".join(json.dumps(sealed(record)) + "\n" for record in records))
    with pytest.raises(ValueError, match=r"greedy-\w{8} was answered without margins .*--no-baselines"):
        run(job(tmp_path, world, limit=4), loaded)


def test_a_tokenizer_without_yes_is_refused_before_any_work(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_shift, "_WORDS", (("Ja", "ja"), ("Nein", "nein")))
    with pytest.raises(
        vlmfix.UnsupportedError, match="says ja; pass yes_ids and no_ids, in an evaluation leave"
    ):
        run(job(tmp_path, world, limit=2), loaded)
    assert not (tmp_path / "pope").exists()
    [plan] = run(job(tmp_path, world, limit=2, methods=["greedy"]), loaded)
    assert not any("margin" in record for record in answers(plan).values())


def test_stock_decoding_beside_a_sampling_protocol(
    whole: tuple[Job, list[RunPlan]], loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    protocol = "pope.tiny+temperature=9.0+seeds=[0, 1]"
    sampled = job(tmp_path, world, protocol=protocol, methods=["greedy", "vhr", "baseline.sample"])
    runs = run(sampled, loaded)
    assert labels(runs)[:3] == ["sampling", "baseline.sample", "baseline.greedy"]
    plain, repeat, greedy = ({} for _ in range(3))
    for found, plan in zip((plain, repeat, greedy), runs, strict=False):
        for record in jobs.records(plan.path):
            found[record["id"], record["repeat"]] = record["text"]
    stock = {id: record["text"] for id, record in answers(whole[1][0]).items()}
    assert greedy == {(id, number): stock[id] for id, number in greedy}
    assert len({plain[key] for key in plain}) > len(set(greedy.values()))
    assert plain != repeat != greedy  # temperature 9, 1 and none
    assert gather(runs).missing == 0


def test_the_command(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.load_once(loaded, monkeypatch)
    options = ("pope", "--data", world, "--limit", 6, "--method", "vhr", "--method", "baseline.sharpen")
    settings = ("--set", "baseline.sharpen.c=2")
    jobs.evaluate(tmp_path / "with", *options, *settings)
    [task] = jobs.read(tmp_path / "with" / "metrics.json")["tasks"]
    assert [each["method"] for each in task["methods"]] == [
        "baseline.sharpen(c=2)",
        "greedy",
        "baseline.prompt_bias",
        "baseline.output_shift(vhr)",
        "vhr",
    ]
    assert any(note.startswith("vhr: ") for note in task["caveats"])
    [*methods] = jobs.read(tmp_path / "with" / "costs.json")["methods"]
    assert methods[0]["activity"]["baseline.sharpen"]["kl_steps"] > 0
    jobs.evaluate(tmp_path / "without", *options, *settings, "--no-baselines")
    [task] = jobs.read(tmp_path / "without" / "metrics.json")["tasks"]
    assert [each["method"] for each in task["methods"]] == ["vhr", "baseline.sharpen(c=2)"]
    assert {each["best_baseline"] for each in task["methods"]} == {None}


def compared(*several: Outcome) -> Comparison:
    [comparison] = compare(several)
    return comparison


STOCK = outcomes.yes_no(images=40, baseline_of="")


def test_the_best_control_is_the_one_with_the_best_first_figure() -> None:
    good = outcomes.yes_no("baseline.a", images=40, yes_bias=0.3, baseline_of="")
    other = outcomes.yes_no("baseline.b(x)", images=40, yes_bias=0.1, baseline_of="x")
    tested = outcomes.yes_no("var", images=40, yes_bias=0.3)
    comparison = compared(STOCK, good, other, tested)
    assert [row.best for row in comparison.rows[:3]] == [None] * 3
    best = comparison.rows[3].best
    assert best is not None
    assert best.words == "not distinguishable from baseline.a"
    assert [figure.metric.name for figure in best.figures][:2] == ["accuracy", "F1"]
    difference = best.figures[0].difference
    assert difference is not None
    assert difference.value == 0
    assert not difference.excludes_zero
    assert "var: not distinguishable from baseline.a by accuracy." in caveats(comparison)
    best = compared(STOCK, good, other, dataclasses.replace(tested, method="x")).rows[3].best
    assert best is not None
    assert best.words == "worse than baseline.b(x)"


def test_a_method_that_beats_its_controls_is_not_noted() -> None:
    comparison = compared(STOCK, outcomes.yes_no("var", images=40, yes_bias=0.2))
    assert comparison.rows[1].best.words == "better than greedy"  # type: ignore[union-attr]
    assert not any(note.startswith("var: ") for note in caveats(comparison))
    [task] = summarise([comparison])["tasks"]
    found = task["methods"][1]["best_baseline"]
    assert (found["method"], found["verdict"]) == ("greedy", "better than")
    assert found["differences"]["accuracy"]["excludes_zero"]


def test_differences_to_the_best_control_are_paired() -> None:
    lossy = outcomes.yes_no("var", images=40, yes_bias=0.2, failed=(0, 7))
    best = compared(STOCK, lossy).rows[1].best
    assert best is not None
    assert best.figures[0].difference is not None
    assert best.figures[0].difference.samples == STOCK.counts["samples"] - 2


def test_captions_must_not_pay_with_recall() -> None:
    greedy = outcomes.captions(images=200, baseline_of="")
    for care, words in ((0.9, "only partly better than greedy"), (0.5, "not distinguishable from greedy")):
        best = compared(greedy, outcomes.captions("x", images=200, care=care)).rows[1].best
        assert best is not None
        assert best.words == words
    careful = outcomes.captions("x", images=200, care=0.9)
    recall = next(metric for metric in greedy.metrics if metric.name == "recall")
    metrics = [recall if metric.name == "recall" else metric for metric in careful.metrics]
    best = compared(greedy, dataclasses.replace(careful, metrics=metrics)).rows[1].best
    assert best is not None
    assert best.words == "better than greedy"


def test_without_controls_there_is_no_best_one() -> None:
    comparison = compared(outcomes.yes_no(), outcomes.yes_no("var"))
    assert [row.best for row in comparison.rows] == [None, None]
    assert "beside the best baseline" not in printed(outcomes.yes_no(), outcomes.yes_no("var"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"id": "a", "dtype": "float16"}}, 'model.dtype: "float32", now "float16"'),
        ({"seed": 1}, "seed: 0, now 1"),
        ({"protocol": {"id": "x", "max_new_tokens": 5}}, "protocol.max_new_tokens: 4, now 5"),
    ],
    ids=str,
)
def test_runs_of_other_settings_are_not_paired(change: dict[str, Any], reason: str) -> None:
    key = {
        "model": {"id": "a", "dtype": "float32"},
        "seed": 0,
        "protocol": {"id": "p", "max_new_tokens": 4},
        "methods": [],
    }
    greedy = dataclasses.replace(STOCK, details={"key": key})
    biased = key | {"methods": [{"name": "x"}], "protocol": {"id": "p+bias-yes", "max_new_tokens": 4}}
    other = outcomes.yes_no("var", images=40, details={"key": biased | {"calibrated_on": {}}})
    assert compared(greedy, other).rows[1].unpaired == ""
    other = outcomes.yes_no("var", images=40, details={"key": key | change})
    row = compared(greedy, other).rows[1]
    assert row.unpaired == f"the runs differ in {reason}"
    assert row.best is None


def test_tables_and_page_show_the_best_control(tmp_path: Path) -> None:
    several = (
        STOCK,
        outcomes.yes_no("baseline.prompt_bias", images=40, yes_bias=0.9, baseline_of=""),
        outcomes.yes_no("var", images=40, seed=1),
    )
    for width in (60, 100):
        text = printed(*several, width=width)
        assert "beside the best baseline" in text
        assert "not distinguishable from" in text
        assert max(map(len, text.splitlines())) <= width
    write_report(tmp_path / "report.html", compare(several), title="A run")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "var not distinguishable from greedy" in page.text
    found = disagreements(compared(*several))
    assert {answer.method for each in found for answer in each.answers} == {"greedy", "var"}
    found = disagreements(compared(*several[:2]))
    assert {answer.method for each in found for answer in each.answers} == {"greedy", "baseline.prompt_bias"}
