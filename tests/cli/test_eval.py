"""`vlmfix eval` and `vlmfix report` from end to end, with every way of stopping and going on."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.support import jobs
from tests.support.forks import Fork
from tests.support.leases import dead_process, held
from tests.support.paths import ROOT
from tests.support.reports import Page
from vlmfix.cli import jobs as module
from vlmfix.cli.app import app
from vlmfix.evaluation.runner.progress import ShownRun

pytestmark = pytest.mark.slow

TASKS = ("pope", "chair", "vqa")
METHODS = ("--method", "greedy", "--method", "var", "--no-baselines")
SAMPLES = {"pope": 18, "chair": 3, "vqa": 24}
SHORT = ("--protocol", "chair.tiny+max_new_tokens=12", "--limit-images", "3", "--batch-size", "4")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _loaded_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.load_once(loaded, monkeypatch)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The output and result of three tasks and two methods in one go."""
    output = tmp_path_factory.mktemp("whole")
    return output, jobs.evaluate(output, *TASKS, *METHODS, *SHORT, "--data", world, draws=True)


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A world that may be changed."""
    return shutil.copytree(world, tmp_path / "copy")


def test_three_tasks_from_end_to_end(whole: tuple[Path, Any]) -> None:
    output, result = whole
    assert {path.name for path in output.iterdir()} == {
        *TASKS,
        "job.json",
        "metrics.json",
        "costs.json",
        "report.html",
        "figures",
    }
    names = ("pope-tradeoff", "pope-calibration", "chair-tradeoff")
    assert {path.name for path in (output / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "pdf")
    }
    found = jobs.read(output / "metrics.json")["tasks"]
    assert [each["task"] for each in found] == list(TASKS)
    for task in found:
        assert [method["method"] for method in task["methods"]] == ["greedy", "var"]
        for method in task["methods"]:
            assert method["counts"]["samples"] == method["counts"]["answered"] == SAMPLES[task["task"]]
    for name in (
        "pope (pope.tiny/synthetic, 3 of 6 images, 18 samples)",
        "chair (chair.tiny/synthetic+max_new_tokens=12, 3 of 6 images, 3 samples)",
        "greedy",
        "var",
    ):
        assert name in result.stdout
    lines = [line for line in result.stderr.splitlines() if " of " in line]
    assert len(lines) == 6
    assert lines[0].startswith("pope · greedy: 18 of 18, ")
    assert "report.html, metrics.json, costs.json" in result.stdout


def test_the_same_command_again_repeats_the_figures(world: Path, tmp_path: Path) -> None:
    first = jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 6)
    before = jobs.metrics(tmp_path)
    (tmp_path / "metrics.json").unlink()
    again = jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 6)
    assert jobs.metrics(tmp_path) == before
    assert again.stderr == ""
    assert again.stdout.split("seconds")[0] == first.stdout.split("seconds")[0]


def test_a_task_without_data_does_not_stop_the_others(copy: Path, tmp_path: Path) -> None:
    (copy / "captions.json").unlink()
    output = tmp_path / "out"
    options = ("--data", copy, "--limit", 2, "--no-baselines", "--output", output)
    result = jobs.cli("eval", "chair", "pope", "--method", "greedy", *options)
    assert result.exit_code == 3
    told = [line for line in result.stderr.splitlines() if "chair is left out: chair needs captions" in line]
    assert len(told) == 2
    answered = jobs.results(output, "pope")["counts"]["answered"]
    assert answered > 0
    before = jobs.metrics(output)
    assert jobs.cli("report", output, "--export", tmp_path / "all.csv").exit_code == 0
    assert jobs.metrics(output) == before
    assert (tmp_path / "all.csv").read_text().count("\n") == 1 + answered
    assert "is none of .csv" in jobs.refused("report", output, "--export", tmp_path / "all.doc")


def test_several_runs_on_one_page(whole: tuple[Path, Any], world: Path, tmp_path: Path) -> None:
    first, second = shutil.copytree(whole[0], tmp_path / "a"), tmp_path / "b"
    own = ("--method", "greedy", "--method", "pai", "--no-baselines", *SHORT[2:])
    jobs.evaluate(second, "pope", *own, "--data", world)
    before = {path: (path / "report.html").read_bytes() for path in (first, second)}
    result = jobs.cli("report", first, second, "--export", tmp_path / "all.csv", draws=True)
    assert result.exit_code == 0
    assert str(first / "comparison.html") in result.stdout
    for name in ("greedy (a)", "greedy (b)", "var", "pai"):
        assert name in result.stdout
    text = Page((first / "comparison.html").read_text()).text.replace("( ", "(")  # where labels may wrap
    assert "greedy (a) reference" in text
    assert "no paired differences" not in text
    assert (first / "figures" / "comparison-pope-tradeoff.pdf").exists()
    assert {path: (path / "report.html").read_bytes() for path in before} == before
    assert "greedy (b)" in (tmp_path / "all.csv").read_text()
    assert jobs.cli("report", second, "--output", tmp_path / "of_one").exit_code == 0
    assert "pai" in (tmp_path / "of_one" / "report.html").read_text()
    assert jobs.cli("report", second, first, "--output", tmp_path / "x.html", draws=True).exit_code == 0
    assert (tmp_path / "figures" / "x-pope-tradeoff.svg").exists()
    said = jobs.refused("report", first, tmp_path / "b" / ".." / "a")
    assert f"{first} is given twice; name each run once" in said


def test_shares_in_any_order_come_to_the_same(whole: tuple[Path, Any], world: Path, tmp_path: Path) -> None:
    order = ("2/3", "0/3", "1/3")
    for number, share in enumerate(order):
        result = jobs.evaluate(tmp_path, *TASKS, *METHODS, *SHORT, "--data", world, "--shard", share)
        last = number == len(order) - 1
        assert (tmp_path / "metrics.json").exists() == last
        assert ("report.html" in result.stdout) == last
        told = (
            "samples are left to other workers; the last of them writes the report. To see what there is: "
            f"vlmfix report {tmp_path}"
        )
        assert (told in result.stdout) == (not last)
        assert "samples/s" in result.stderr
    assert jobs.metrics(tmp_path) == jobs.metrics(whole[0])


def test_shares_that_a_launcher_gives(
    whole: tuple[Path, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        result = jobs.evaluate(tmp_path, *TASKS, *METHODS, *SHORT, "--data", world)
        assert bool(result.stderr) == (rank == "0")
    assert jobs.metrics(tmp_path) == jobs.metrics(whole[0])
    assert {path.name for path in tmp_path.glob("vqa/*/records/*")} == {
        "0-of-2-000.jsonl",
        "1-of-2-000.jsonl",
    }


def test_a_job_that_is_at_work_already_is_not_done_twice(world: Path, tmp_path: Path) -> None:
    lease = held(tmp_path)
    said = jobs.refused("eval", "pope", "--data", world, "--output", tmp_path)
    assert f"another job is at work in {tmp_path} (host elsewhere, process 4, last sign of life" in said
    assert jobs.records(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["leases"]
    os.utime(lease, (1, 1))
    jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 2)
    assert not lease.parent.exists()


def test_a_worker_that_steals_does_all_that_the_others_left(
    whole: tuple[Path, Any], world: Path, tmp_path: Path
) -> None:
    held(tmp_path, "0-of-2", host=os.uname().nodename, pid=dead_process())
    command = (*TASKS, *METHODS, *SHORT, "--data", world, "--shard", "1/2", "--steal")
    result = jobs.evaluate(tmp_path, *command)
    assert result.stderr.count("note: takes over what is left of share 0/2") == 1
    assert jobs.metrics(tmp_path) == jobs.metrics(whole[0])
    said = jobs.refused("eval", *command, "--resume", "never", "--output", tmp_path)
    assert "--steal goes on with what others began, which --resume never refuses; drop one" in said


def test_the_report_is_written_by_one_of_several_workers(world: Path, tmp_path: Path) -> None:
    held(tmp_path, "report")
    result = jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 2)
    assert "note: another worker writes the report" in result.stderr
    assert not (tmp_path / "report.html").exists()


def test_jobs_of_an_array_share_the_work_and_say_so(
    whole: tuple[Path, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    for id in ("1", "2"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", id)
        result = jobs.evaluate(tmp_path, *TASKS, *METHODS, *SHORT, "--data", world)
        assert f"note: share {int(id) - 1}/2, as the launcher says; --shard 0/1 is all the" in result.stderr
    assert jobs.metrics(tmp_path) == jobs.metrics(whole[0])


def test_signals_are_as_before(world: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 1)
    jobs.refused("eval", "pope", "--data", world / "missing", "--output", tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_launcher_that_tells_half_of_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    said = jobs.refused("eval", "pope", "--data", world, "--output", tmp_path)
    assert "the environment says RANK=3, which is no share of the work" in said
    jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 2, "--shard", "0/1")


def test_a_report_repeats_the_scores(whole: tuple[Path, Any], tmp_path: Path) -> None:
    output = shutil.copytree(whole[0], tmp_path / "moved")
    before = jobs.metrics(output)
    for name in ("metrics.json", "report.html"):
        (output / name).unlink()
    result = jobs.cli("report", output)
    assert result.exit_code == 0
    assert jobs.metrics(output) == before
    assert (output / "report.html").exists()
    assert "chair (chair.tiny/synthetic" in result.stdout


def test_a_report_of_a_job_that_is_not_finished(world: Path, tmp_path: Path) -> None:
    jobs.evaluate(tmp_path, "vqa", "--data", world, "--shard", "0/2")
    result = jobs.cli("report", tmp_path)
    assert result.exit_code == 0
    found = jobs.results(tmp_path)["counts"]
    assert 0 < found["answered"] < found["samples"]
    [note] = [
        note for note in jobs.read(tmp_path / "metrics.json")["tasks"][0]["caveats"] if "partial" in note
    ]
    assert note == f"greedy: partial ({found['answered']} of {found['samples']} samples)."
    assert "partial" in result.stdout
    assert "partial" in (tmp_path / "report.html").read_text()


def test_a_report_of_a_job_without_any_answer(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vlmfix.evaluation.runner.begun_run.Writer.write",
        lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    assert jobs.cli("eval", "pope", "--data", world, "--output", tmp_path).exit_code == 130
    assert jobs.cli("report", tmp_path).exit_code == 0
    assert jobs.results(tmp_path)["counts"]["answered"] == 0


def test_changed_settings_start_another_run_and_say_why(world: Path, tmp_path: Path) -> None:
    command = ("pope", "--data", world, "--limit", 3, "--method", "var", "--no-baselines")
    jobs.evaluate(tmp_path, *command)
    result = jobs.evaluate(tmp_path, *command, "--set", "moved_fraction=0.6")
    [note] = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    pattern = (
        r"note: a new run var-\w{8}, not var-\w{8}: methods\[0\]\.parameters\.moved_fraction: 0\.4, now 0\.6"
    )
    assert re.fullmatch(pattern, note)
    assert len(list((tmp_path / "pope").iterdir())) == 2
    assert jobs.results(tmp_path)["method"] == "var(moved_fraction=0.6)"


def test_going_on_or_not(world: Path, tmp_path: Path) -> None:
    command = ("pope", "--data", world, "--output", tmp_path, "--limit")
    assert "there is no run" in jobs.refused("eval", *command, 3, "--resume", "always")
    assert jobs.cli("eval", *command, 3, "--resume", "never").exit_code == 0
    assert "holds such a run already" in jobs.refused("eval", *command, 3, "--resume", "never")
    result = jobs.cli("eval", *command, 10, "--resume", "always")
    assert result.exit_code == 0
    assert "pope · greedy: 6 of 12 samples are there" in result.stderr
    assert len(jobs.records(tmp_path)) == 12


def test_a_higher_limit_goes_on(world: Path, tmp_path: Path) -> None:
    for limit, answered in (("3", 6), ("0.25", 12), ("1e2", 36)):
        jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", limit)
        assert jobs.results(tmp_path)["counts"]["answered"] == answered
    assert len(jobs.records(tmp_path)) == 36


def test_a_changed_image_is_refused(copy: Path, tmp_path: Path) -> None:
    command = ("vqa", "--data", copy, "--output", tmp_path / "out")
    assert jobs.cli("eval", *command).exit_code == 0
    Image.new("RGB", (64, 64), "red").save(copy / "images" / "000000000003.png")
    before = jobs.records(tmp_path / "out")
    said = jobs.refused("eval", *command)
    assert "was answered with another image or prompt than it has now; restore what changed" in said
    assert jobs.records(tmp_path / "out") == before


@pytest.mark.parametrize("option", ["--retry-errors", "--no-retry-errors"])
def test_failures_tried_again(option: str, copy: Path, tmp_path: Path) -> None:
    path = copy / "images" / "000000000003.png"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    command = ("chair", "--data", copy, "--protocol", "chair.tiny+max_new_tokens=4", option)
    result = jobs.evaluate(tmp_path / "out", *command, exit_code=3)
    assert "chair · greedy: 6 of 6, 1 failed" in result.stderr
    again = jobs.evaluate(tmp_path / "out", *command, exit_code=3)
    assert ("5 of 6 samples are there" in again.stderr) == (option == "--retry-errors")
    assert len(jobs.records(tmp_path / "out")) == 6 + (option == "--retry-errors")
    path.write_bytes(content)
    jobs.evaluate(tmp_path / "out", *command)
    assert jobs.results(tmp_path / "out")["counts"]["answered"] == 6


def test_figures_go_where_nobody_said(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs.cli("eval", "pope", "--data", world, "--limit", 2).exit_code == 0
    assert (tmp_path / "runs" / "tiny-llava" / "metrics.json").exists()


def test_synthetic_scenes_are_drawn_once(tmp_path: Path) -> None:
    config = jobs.job_file(
        tmp_path / "job.yaml", tasks=["vqa"], data={"synthetic": {"count": 3, "seed": 1}}, limit_images=1
    )
    jobs.evaluate(tmp_path / "out", "--config", config)
    [scenes] = (tmp_path / "out" / "data").iterdir()
    drawn = {path: path.stat().st_mtime_ns for path in scenes.rglob("*")}
    jobs.evaluate(tmp_path / "out", "--config", config, "--limit-images", "2")
    assert {path: path.stat().st_mtime_ns for path in scenes.rglob("*")} == drawn
    assert jobs.results(tmp_path / "out")["counts"]["answered"] == 16


def test_a_job_file_and_options_that_take_its_place(world: Path, tmp_path: Path) -> None:
    config = jobs.job_file(
        tmp_path / "job.yaml",
        tasks=["pope", "vqa"],
        model="tiny-llava",
        data=str(world),
        methods=["greedy", {"var": {"moved_fraction": 0.6}}, {"var+vhr": {"vhr": {"head_scale": 1.5}}}],
        protocol=["pope.llava+max_new_tokens=3+parser=vlmevalkit", "vqa.tiny"],
        baselines=False,
        limit_images=1,
        batch_size=2,
        max_errors=0,
        seed=3,
        output=str(tmp_path / "from file"),
    )
    assert jobs.cli("eval", "--config", config).exit_code == 0
    found = jobs.read(tmp_path / "from file" / "metrics.json")["tasks"]
    assert [each["protocol"] for each in found] == [
        "pope.llava/synthetic+max_new_tokens=3+parser=vlmevalkit",
        "vqa.tiny/synthetic",
    ]
    assert [each["method"] for each in found[0]["methods"]] == [
        "greedy",
        "var(moved_fraction=0.6)",
        "var+vhr(head_scale=1.5)",
    ]
    assert {each["counts"]["answered"] for task in found for each in task["methods"]} == {6, 8}
    assert {record["seed"] for record in jobs.records(tmp_path / "from file")} == {3}
    assert max(record["batch_size"] for record in jobs.records(tmp_path / "from file")) == 2
    options = (
        "--method",
        "vhr",
        "--limit",
        "3",
        "--batch-size",
        "auto",
        "--seed",
        "4",
        "--protocol",
        "vqa.tiny",
    )
    jobs.evaluate(tmp_path / "from options", "vqa", "--config", config, *options)
    [task] = jobs.read(tmp_path / "from options" / "metrics.json")["tasks"]
    assert [each["method"] for each in task["methods"]] == ["vhr"]
    records = jobs.records(tmp_path / "from options")
    assert [(record["seed"], record["batch_size"]) for record in records] == [(4, 8)] * 8


def test_methods_with_settings_on_the_command_line(world: Path, tmp_path: Path) -> None:
    jobs.evaluate(
        tmp_path, "pope", "--data", world, "--limit", 2, "--method", "greedy", "--method", "var+vhr",
        "--method", "vhr", "--set", "var.moved_fraction=0.7", "--set", "vhr.head_scale=1.5", "--no-baselines",
    )  # fmt: skip
    [task] = jobs.read(tmp_path / "metrics.json")["tasks"]
    assert [each["method"] for each in task["methods"]] == [
        "greedy",
        "var(moved_fraction=0.7)+vhr(head_scale=1.5)",
        "vhr(head_scale=1.5)",
    ]
    parameters = task["methods"][1]["parameters"]
    assert (parameters["var"]["moved_fraction"], parameters["vhr"]["head_scale"]) == (0.7, 1.5)


def test_paths_of_single_files(world: Path, tmp_path: Path) -> None:
    rows = [
        {"question_id": number, "image": "000000000001.png", "text": f"Is there a {name}?", "label": "yes"}
        for number, name in enumerate(("dog", "cat"))
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"pope": str(tmp_path / "own.jsonl"), "images": str(world / "images")}
    config = jobs.job_file(tmp_path / "job.yaml", tasks=["pope"], data=data)
    jobs.evaluate(tmp_path / "out", "--config", config)
    [task] = jobs.read(tmp_path / "out" / "metrics.json")["tasks"]
    assert task["protocol"] == "pope.llava/custom"
    assert {record["id"] for record in jobs.records(tmp_path)} == {"pope/custom/own/0", "pope/custom/own/1"}


@pytest.mark.parametrize("task", ["pope", "vqa"])
def test_a_data_set_with_named_columns(
    task: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    pictures = [
        {"bytes": (world / "images" / f"{1 + n:012d}.png").read_bytes(), "path": None} for n in range(3)
    ]
    answers = ["yes", "no", "Yes"] if task == "pope" else [["two"] * 10, ["2"] * 4, ["three"]]
    data = datasets.Dataset.from_dict(
        {"picture": pictures, "asked": ["Is there a dog?"] * 3, "right": answers, "kind": ["a", "a", "b"]}
    )
    data.cast_column("picture", datasets.Image()).save_to_disk(tmp_path / "saved")
    columns = {"image": "picture", "question": "asked", "answer": "right", "group": "kind"}
    config = jobs.job_file(
        tmp_path / "job.yaml", tasks=[task], data={"dataset": str(tmp_path / "saved"), "columns": columns}
    )
    result = jobs.evaluate(tmp_path / "out", "--config", config)
    assert "examples/s" not in result.stderr
    found = jobs.results(tmp_path / "out")
    assert found["counts"]["answered"] == 3
    assert jobs.cli("report", tmp_path / "out").exit_code == 0


def test_several_repeats_of_each_sample(world: Path, tmp_path: Path) -> None:
    found = []
    for name, size in (("a", "1"), ("b", "16")):
        jobs.evaluate(
            tmp_path / name, "pope", "--data", world, "--limit", 4, "--batch-size", size,
            "--protocol", "pope.one-word-sample+temperature=2.0", *METHODS,
        )  # fmt: skip
        found.append(jobs.metrics(tmp_path / name))
    assert found[0] == found[1]
    assert jobs.results(tmp_path / "a")["counts"]["samples"] == 18
    assert jobs.results(tmp_path / "a")["metrics"][0]["repeats"] is not None


def test_carve_is_asked_one_by_one(world: Path, tmp_path: Path) -> None:
    methods = ("--method", "greedy", "--method", "carve", "--no-baselines")
    jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 2, *methods)
    costs = {each["method"]: each for each in jobs.read(tmp_path / "costs.json")["methods"]}
    assert costs["carve"]["costs"]["forwards per token"] > costs["greedy"]["costs"]["forwards per token"]


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let a signal arrive after so many batches."""
    original = ShownRun.advance
    batches: list[int] = []

    def advance(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        batches.append(1)
        if len(batches) == after:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ShownRun, "advance", advance)


def test_an_interrupt_says_how_to_go_on_and_loses_nothing(
    whole: tuple[Path, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TASKS, *METHODS, *SHORT, "--data", str(world), "--output", str(tmp_path / "an output")]
    monkeypatch.setattr(sys, "argv", ["vlmfix", "eval", *command])
    with monkeypatch.context() as patched:
        interrupting(patched, 5)
        result = jobs.cli("eval", *command)
    assert result.exit_code == 130
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    typed = f"vlmfix eval {' '.join(command[:-1])} '{tmp_path}/an output'"
    assert lines[-1] == f"stopped; what was answered is safe. To go on: {typed}"
    assert sum(line.startswith("stopped") for line in lines) == 1
    # Both have answered two pictures in turn, but for a batch.
    assert lines[-3].startswith("pope · greedy: 12 of 18")
    assert lines[-2].startswith("pope · var: 8 of 18")
    assert len(jobs.records(tmp_path)) == 20
    again = jobs.cli("eval", *command)
    assert again.exit_code == 0
    assert "pope · var: 8 of 18 samples are there" in again.stderr
    assert jobs.metrics(tmp_path / "an output") == jobs.metrics(whole[0])


@pytest.mark.parametrize("place", ["prepare", "load_model", "gather", "publish"])
def test_an_interrupt_before_and_after_the_work(
    place: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, place, stop)
    result = jobs.cli("eval", "pope", "--data", world, "--limit", 2, "--output", tmp_path)
    assert result.exit_code == 130
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines()[-1].startswith("stopped; what was answered is safe. To go on: vlmfix")
    assert "0 of 0" not in result.stderr


def test_a_full_disk_in_the_middle_is_one_line(
    whole: tuple[Path, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*TASKS, *METHODS, *SHORT, "--data", world, "--output", tmp_path)
    syncs: list[int] = []

    def fsync(descriptor: int) -> None:
        syncs.append(descriptor)
        if len(syncs) > 4:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        result = jobs.cli("eval", *command)
    assert result.exit_code == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot write to" in line
    assert "No space left on device); what was answered before is safe: make room and start the same" in line
    assert jobs.cli("eval", *command).exit_code == 0
    assert jobs.metrics(tmp_path) == jobs.metrics(whole[0])


def child(*arguments: object, log: Path) -> Fork:
    """A fork of this process that runs a command."""
    return Fork(lambda: app([str(argument) for argument in arguments], standalone_mode=False), log)


def written(output: Path) -> int:
    """Bytes of records."""
    return sum(path.stat().st_size for path in output.glob("*/*/records/*.jsonl"))


@pytest.mark.slow
def test_killed_at_ten_moments_and_resumed_with_other_numbers_of_workers(
    whole: tuple[Path, Any], world: Path, tmp_path: Path
) -> None:
    """The commands of users, killed from outside while they write."""
    dice = random.Random(1)
    command = ("eval", *TASKS, *METHODS, *SHORT, "--data", world, "--output", tmp_path / "out")
    kills = 0
    for _ in range(10):
        of = dice.choice([1, 1, 2, 3])
        there = written(tmp_path / "out")
        target = there + dice.randrange(1, 2000)
        share = f"{dice.randrange(of)}/{of}"
        fork = child(*command, "--shard", share, log=tmp_path / "log")
        kills += fork.kill_when(lambda target=target: written(tmp_path / "out") >= target)
    assert kills >= 5
    for share in ("2/3", "0/3", "1/3"):
        assert jobs.cli(*command, "--shard", share).exit_code == 0
    assert jobs.metrics(tmp_path / "out") == jobs.metrics(whole[0])
    ids = [(record["id"], record["repeat"]) for record in jobs.records(tmp_path / "out" / "vqa")]
    assert len(ids) == len(set(ids)) * 2 == 48


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_end_a_command_cleanly(number: int, world: Path, tmp_path: Path) -> None:
    command = ("eval", "vqa", "--data", world, "--batch-size", 1, "--output", tmp_path / "out")
    assert child(*command, log=tmp_path / "log").send(number, lambda: written(tmp_path / "out") > 0) == 130
    said = (tmp_path / "log").read_text()
    assert "stopped; what was answered is safe. To go on: vlmfix" in said
    assert "Traceback" not in said
    done = len(jobs.records(tmp_path))
    assert done > 0
    assert jobs.cli(*command).exit_code == 0
    assert len(jobs.records(tmp_path)) == jobs.results(tmp_path / "out")["counts"]["samples"]


def test_a_process_interrupted(whole: tuple[Path, Any], world: Path, tmp_path: Path) -> None:
    """A process of its own, as a person starts and stops it."""
    command = ["eval", *TASKS, *METHODS, *SHORT, "--data", world, "--output", tmp_path / "out"]
    with (tmp_path / "log").open("wb") as log:
        started = [sys.executable, ROOT / "cli.py", *command]
        process = subprocess.Popen(list(map(str, started)), stdout=log, stderr=subprocess.STDOUT)
    while written(tmp_path / "out") == 0:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    said = (tmp_path / "log").read_text()
    assert said.splitlines()[-1].startswith(
        "stopped; what was answered is safe. To go on: vlmfix eval pope chair"
    )
    assert "Traceback" not in said
    assert jobs.cli(*command).exit_code == 0
    assert jobs.metrics(tmp_path / "out") == jobs.metrics(whole[0])


SHARE = """
import sys
from pathlib import Path
from vlmfix.evaluation.runner.shard import Shard
own = Shard.from_environment()
Path(sys.argv[1], f"{own.index} of {own.of}, {own.local}").touch()
"""


@pytest.mark.slow
def test_accelerate_gives_each_process_a_share(tmp_path: Path) -> None:
    """The share of a process; `test_shares_that_a_launcher_gives` has what is made of it."""
    program, found = tmp_path / "program.py", tmp_path / "found"
    program.write_text(SHARE)
    found.mkdir()
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(program), str(found)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in found.iterdir()} == {"0 of 2, 0", "1 of 2, 1"}


@pytest.mark.parametrize(("option", "rows"), [("--no-controls", 1), ("--controls", 4)])
def test_the_old_spelling_of_baselines_says_its_new_one(
    option: str, rows: int, world: Path, tmp_path: Path
) -> None:
    result = jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 2, "--method", "var", option)
    new = option.replace("controls", "baselines")
    assert f"warning: {option} is called {new} now" in result.stderr.splitlines()
    [task] = jobs.read(tmp_path / "metrics.json")["tasks"]
    assert len(task["methods"]) == rows


def test_the_engine_ray_needs_ray(monkeypatch: pytest.MonkeyPatch, world: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = jobs.refused("eval", "pope", "--data", world, "--output", tmp_path, "--engine", "ray")
    assert said == 'error: --engine ray needs Ray: pip install "vlmfix[ray]"'
