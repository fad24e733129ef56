"""Jobs at work: shares, resuming after any kind of end, and what is refused or explained on the way."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlmfix
from tests.support import jobs
from tests.support.reports import Notes
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.files.atomic import write_json
from vlmfix.evaluation.report.collect import gather, publish
from vlmfix.evaluation.report.json_summary import summarise
from vlmfix.evaluation.runner import run_key, run_store
from vlmfix.evaluation.runner.config import Job, make_job
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.host import Assignment, LocalHost, Request, default_batch_size
from vlmfix.evaluation.runner.plan import RunPlan, prepare, read_plans
from vlmfix.evaluation.runner.run_store import ResumeError
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.evaluation.sample import Sample


def job(output: Path, data: Path, **changes: Any) -> Job:
    settings = {
        "tasks": ["pope"],
        "output": str(output),
        "data": str(data),
        "limit": 24,
        "batch_size": 3,
        "baselines": False,
    }
    return make_job(settings | changes)


def run(
    job: Job, loaded: tuple[Any, Any], shard: Shard | None = None, progress: Notes | None = None
) -> list[RunPlan]:
    return execute(job, prepare(job), LocalHost(*loaded), shard or Shard(), progress or Notes())


def finished(job: Job, runs: Sequence[RunPlan]) -> bytes:
    """The metrics of a job of which nothing is missing, as they are published."""
    gathered = gather(runs)
    assert gathered.missing == 0
    write_json(job.output / "metrics.json", summarise(compare(gathered.outcomes)))
    return jobs.metrics(job.output)


FOUR = {"tasks": ["pope", "vqa"], "methods": ["greedy", "var"], "limit": None}
TWO = FOUR | {"tasks": ["pope"]}
SAMPLES = 6


@pytest.fixture(scope="module")
def small(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world with one question of each task about each image, so that several workers have few samples."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("images", "instances.json", "captions.json"):
        (folder / name).symlink_to(world / name)
    for name, key in (("questions", "questions"), ("answers", "annotations")):
        content = jobs.read(world / f"{name}.json")
        content[key] = [each for each in content[key] if each["question_id"] % 1000 == 0]
        (folder / f"{name}.json").write_text(json.dumps(content))
    for number, split in enumerate(("random", "popular", "adversarial")):
        path = f"synthetic_pope_{split}.json"
        lines = (world / path).read_text().splitlines()
        (folder / path).write_text("\n".join(lines[4 * number : 4 * number + 4 : 2]))  # of two images
    return folder


@pytest.fixture(scope="module")
def undisturbed(loaded: tuple[Any, Any], small: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The metrics of two tasks and two methods in one go."""
    whole = job(tmp_path_factory.mktemp("undisturbed"), small, **FOUR)
    return finished(whole, run(whole, loaded))


@pytest.fixture(scope="module")
def undisturbed_task(loaded: tuple[Any, Any], small: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The metrics of one of the tasks alone."""
    whole = job(tmp_path_factory.mktemp("undisturbed"), small, **TWO)
    return finished(whole, run(whole, loaded))


@pytest.mark.parametrize("batch_size", [1, pytest.param("auto", marks=pytest.mark.slow)])
def test_metrics_do_not_depend_on_batches(
    batch_size: int | str, undisturbed: bytes, loaded: tuple[Any, Any], small: Path, tmp_path: Path
) -> None:
    other = job(tmp_path, small, **FOUR, batch_size=batch_size)
    assert finished(other, run(other, loaded)) == undisturbed


@pytest.mark.parametrize("order", [(2, 0, 1), pytest.param((0, 1, 2), marks=pytest.mark.slow)])
def test_metrics_do_not_depend_on_workers(
    order: tuple[int, ...], undisturbed: bytes, loaded: tuple[Any, Any], small: Path, tmp_path: Path
) -> None:
    shared = job(tmp_path, small, **FOUR)
    left = []
    for index in order:
        runs = run(shared, loaded, Shard(index, len(order)))
        left.append(gather(runs).missing)
    assert sorted(left, reverse=True) == left
    assert left[-1] == 0 < left[-2]
    assert finished(shared, runs) == undisturbed
    assert len(jobs.records(tmp_path)) == 4 * SAMPLES
    names = {path.name for path in tmp_path.glob("*/*/records/*.jsonl")}
    assert names == {f"{index}-of-3-000.jsonl" for index in order}


class Mortal:
    """Ends its process as `kill -9` does, at one of many moments."""

    MOMENTS = ("write", "half", "cut", "sync", "synced", "mkdir", "linked", "replace")

    def __init__(self, moment: str, count: int) -> None:
        self.moment, self.count = moment, count

    def __call__(self, moment: str) -> None:
        if moment == self.moment:
            self.count -= 1
            if self.count < 0:
                jobs.die()

    def patch(self) -> None:
        """Make what touches the disk mortal; in a process of its own only."""
        originals = os.fsync, os.link, os.replace, run_store._open_new, Path.mkdir

        class File:
            def __init__(file, opened: Any) -> None:
                file.opened = opened

            def write(file, content: Any) -> int:
                self("write")
                if self.moment in ("half", "cut") and self.count == 0:
                    size = 2 * len(content) // 5 if self.moment == "half" else len(content) - 1
                    file.opened.write(content[:size])
                self(self.moment if self.moment in ("half", "cut") else "")
                return file.opened.write(content)

            def __getattr__(file, name: str) -> Any:
                return getattr(file.opened, name)

        def fsync(descriptor: int) -> None:
            self("sync")
            originals[0](descriptor)
            self("synced")

        def link(*paths: Any) -> None:
            originals[1](*paths)
            self("linked")

        def replace(*paths: Any) -> None:
            self("replace")
            originals[2](*paths)

        def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
            originals[4](path, *args, **kwargs)
            if path.name == "records":
                self("mkdir")

        os.fsync, os.link, os.replace = fsync, link, replace
        run_store._open_new = lambda *args: File(originals[3](*args))
        Path.mkdir = mkdir


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        moment if moment in ("half", "synced", "mkdir") else pytest.param(moment, marks=pytest.mark.slow)
        for moment in Mortal.MOMENTS
    ],
)
def test_killed_at_a_moment_and_resumed_the_rest_is_done_once(
    moment: str, undisturbed_task: bytes, loaded: tuple[Any, Any], small: Path, tmp_path: Path
) -> None:
    killed = job(tmp_path, small, **TWO)

    def work() -> None:
        Mortal(moment, 0 if moment in ("replace", "linked") else 3).patch()
        run(killed, loaded)

    assert jobs.in_child(work) == -9
    torn = moment in ("half", "cut")
    progress = Notes()
    runs = run(killed, loaded, progress=progress)
    assert finished(killed, runs) == undisturbed_task
    named = [Path(note.partition(": the last line was cut off; its sample")[0]) for note in progress.notes]
    assert [path.name for path in named if path.is_file()] == ["0-of-1-000.jsonl"] * torn
    for plan in runs:
        lines = [
            line
            for path in (plan.path / "records").iterdir()
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        assert len(lines) == SAMPLES


@pytest.mark.slow
def test_killed_ten_times_and_resumed_with_other_numbers_of_workers(
    undisturbed: bytes, loaded: tuple[Any, Any], small: Path, tmp_path: Path
) -> None:
    dice = random.Random(0)
    killed = job(tmp_path, small, **FOUR)
    done = []
    for _ in range(10):
        of = dice.choice([1, 2, 3])
        shard = Shard(dice.randrange(of), of)
        mortal = Mortal(dice.choice(Mortal.MOMENTS[:5]), dice.randrange(4))

        def work(shard: Shard = shard, mortal: Mortal = mortal) -> None:
            mortal.patch()
            run(killed, loaded, shard)

        assert jobs.in_child(work) in (-9, 0)  # a share may hold less than it takes to be killed
        done.append(gather(read_plans(tmp_path)).missing)
    assert sorted(done, reverse=True) == done
    of = dice.choice([1, 2, 3])
    for index in range(of):
        runs = run(killed, loaded, Shard(index, of))
    assert finished(killed, runs) == undisturbed


def test_workers_at_the_same_time_do_every_sample_once(
    undisturbed: bytes, loaded: tuple[Any, Any], small: Path, tmp_path: Path
) -> None:
    shared = job(tmp_path, small, **FOUR)
    children = []
    for index in range(3):
        child = os.fork()
        if child == 0:
            try:
                runs = run(shared, loaded, Shard(index, 3))
                if gather(runs).missing == 0:
                    publish(gather(runs), tmp_path, runs)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert jobs.metrics(tmp_path) == undisturbed
    assert len(jobs.records(tmp_path)) == 4 * SAMPLES
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


@pytest.mark.slow
def test_repeats_do_not_depend_on_workers(loaded: tuple[Any, Any], world: Path, tmp_path: Path) -> None:
    protocol = "pope.one-word-sample+temperature=2.0"
    found = []
    for name, size, of in (("a", 1, 1), ("b", 7, 1), ("c", 4, 3)):
        sampled = job(tmp_path / name, world, protocol=protocol, limit=6, batch_size=size)
        for index in range(of):
            runs = run(sampled, loaded, Shard(index, of))
        finished(sampled, runs)
        records = {(each["id"], each["repeat"]): each["text"] for each in jobs.records(tmp_path / name)}
        assert len(records) == 18
        found.append((records, jobs.metrics(tmp_path / name)))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0][0].values())) > 3


def test_a_finished_job_is_not_asked_again(loaded: tuple[Any, Any], world: Path, tmp_path: Path) -> None:
    done = job(tmp_path, world)
    run(done, loaded)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    progress = Notes()
    run(done, loaded, progress=progress)
    assert (progress.active, progress.notes) == ([], [])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


def test_a_watcher_is_told(loaded: tuple[Any, Any], small: Path, tmp_path: Path) -> None:
    watched = job(tmp_path, small)
    run(watched, loaded, Shard(0, 2))
    there = len(jobs.records(tmp_path))
    progress = Notes()
    runs = run(watched, loaded, progress=progress)
    assert progress.active == [("pope · greedy", "right so far", 6, there), ("end", "", 0, 0)]
    assert progress.statuses == ["ok"] * (6 - there)
    scores = {sample.id: sample.score for sample in gather(runs).outcomes[0].samples}
    lines = (runs[0].path / "records" / "0-of-1-000.jsonl").read_text().splitlines()
    new = [json.loads(line)["id"] for line in lines]
    assert sorted(progress.scores) == sorted(scores[id] for id in new)


@pytest.mark.slow
def test_a_higher_limit_goes_on_and_a_lower_one_looks_back(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    metrics = {}
    for limit in (2, 20, 2, None):
        limited = job(tmp_path / "extended", world, limit=limit)
        extended = finished(limited, run(limited, loaded))
        assert metrics.setdefault(limit, extended) == extended
        fresh = job(tmp_path / f"fresh {limit}", world, limit=limit)
        assert finished(fresh, run(fresh, loaded)) == extended
    assert len(list((tmp_path / "extended" / "pope").iterdir())) == 1
    records = jobs.records(tmp_path / "extended")
    assert len(records) == len({record["id"] for record in records}) == 36


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": 1}, "seed: 0, now 1"),
        ({"dtype": "bfloat16"}, 'model.dtype: "float32", now "bfloat16"'),
        ({"protocol": "pope.tiny+max_new_tokens=5"}, "protocol.max_new_tokens: 4, now 5"),
        (
            {"methods": [{"var": {"moved_fraction": 0.6}}]},
            "methods[0].parameters.moved_fraction: 0.4, now 0.6",
        ),
    ],
    ids=str,
)
def test_changed_settings_start_another_run_and_say_why(
    change: dict[str, Any], why: str, loaded: tuple[Any, Any], small: Path, tmp_path: Path
) -> None:
    settings = {"methods": ["var"], "limit": 3}
    [first] = run(job(tmp_path, small, **settings), loaded)
    before = jobs.records(first.path)
    progress = Notes()
    changed = job(tmp_path, small, **(settings | change))
    model = vlmfix.load(dtype="bfloat16") if "dtype" in change else loaded
    [second] = run(changed, model, progress=progress)
    assert second.path != first.path
    [note] = progress.notes
    assert note.startswith(f"a new run {second.path.name}, not {first.path.name}: ")
    assert why in note
    assert jobs.records(first.path) == before
    assert len(jobs.records(second.path)) == 3


def test_of_several_earlier_runs_the_nearest_is_named(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    names = []
    for settings in ({"seed": 1, "protocol": "pope.tiny+max_new_tokens=2"}, {"seed": 2}, {"seed": 3}):
        progress = Notes()
        [plan] = run(job(tmp_path, world, limit=1, **settings), loaded, progress=progress)
        names.append(plan.path.name)
    assert progress.notes == [f"a new run {names[2]}, not {names[1]}: seed: 2, now 3"]


def test_runs_of_other_methods_are_nothing_to_explain(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    progress = Notes()
    for methods in (["greedy"], ["var"], ["var+vhr"], ["vhr+var"]):
        run(job(tmp_path, world, limit=1, methods=methods), loaded, progress=progress)
    assert progress.notes == []


def test_killed_before_the_manifest_was_written(loaded: tuple[Any, Any], small: Path, tmp_path: Path) -> None:
    [plan] = run(job(tmp_path, small, limit=2), loaded)
    shutil.rmtree(plan.path)
    (plan.path / "records").mkdir(parents=True)
    progress = Notes()
    for seed, resume in ((1, "if_possible"), (0, "never"), (0, "always")):
        run(job(tmp_path, small, limit=2, seed=seed, resume=resume), loaded, progress=progress)
    assert len(jobs.records(plan.path)) == 3  # one image of each split
    assert len(progress.notes) == 1


def test_resume_never_and_always(loaded: tuple[Any, Any], small: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"there is no run .*greedy-\w{8} to go on with; see --output"):
        run(job(tmp_path, small, resume="always", limit=2), loaded)
    run(job(tmp_path, small, resume="never", limit=2), loaded)
    with pytest.raises(ResumeError, match=r"greedy-\w{8} holds such a run already; choose another --output"):
        run(job(tmp_path, small, resume="never", limit=2), loaded)
    with pytest.raises(
        ResumeError, match=r"to go on with; greedy-\w{8} is of other settings \(seed: 0, now 1\)"
    ):
        run(job(tmp_path, small, resume="always", limit=2, seed=1), loaded)
    run(job(tmp_path, small, resume="always", limit=4), loaded)
    run(job(tmp_path, small, resume="never", limit=4, seed=1), loaded)
    assert len(jobs.records(tmp_path)) == 8


def test_resume_never_lets_workers_start_together(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    settings = {"resume": "never", "tasks": ["vqa"], "limit": None}
    for index in (1, 0):
        runs = run(job(tmp_path, world, **settings), loaded, Shard(index, 2))
    assert gather(runs).missing == 0
    assert len(list((runs[0].path / "records").iterdir())) == 2
    for shard in (Shard(0, 2), Shard(1, 2), Shard(0, 3), Shard()):
        with pytest.raises(ResumeError, match="holds such a run already"):
            run(job(tmp_path, world, **settings), loaded, shard)


def test_another_environment(
    loaded: tuple[Any, Any], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(tmp_path, small, limit=2), loaded)
    found = run_key.environment(loaded[0])
    monkeypatch.setattr(run_key, "environment", lambda model: found | {"torch": "99"})
    with pytest.raises(ResumeError, match=r"begun in another environment \(torch: .*, now \"99\"\)"):
        run(job(tmp_path, small, limit=4), loaded)
    [plan] = run(job(tmp_path, small, limit=4, allow_environment_change=True), loaded)
    assert [each["torch"] for each in run_store.read_manifest(plan.path)["environments"]] == [
        found["torch"],
        "99",
    ]
    assert sorted(record["environment"] for record in jobs.records(tmp_path)) == [0, 0, 0, 1]


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A world that may be changed."""
    return shutil.copytree(world, tmp_path / "copy")


def first_image(job: Job) -> Path:
    image = prepare(job)[0].samples[0].image
    assert image is not None
    return image


def test_an_image_that_changes_between_runs_is_refused(
    loaded: tuple[Any, Any], copy: Path, tmp_path: Path
) -> None:
    asked = job(tmp_path / "out", copy)
    run(asked, loaded)
    image = first_image(asked)
    content = image.read_bytes()
    Image.new("RGB", (64, 64), "red").save(image)
    with pytest.raises(ResumeError, match=r"was answered with another image or prompt than it has now"):
        run(asked, loaded)
    image.unlink()
    with pytest.raises(ResumeError, match="was answered with another image"):
        run(asked, loaded)
    image.write_bytes(content)
    run(asked, loaded)
    assert len(jobs.records(tmp_path / "out")) == 24


def test_annotations_that_change_between_runs_start_another_run(
    loaded: tuple[Any, Any], copy: Path, tmp_path: Path
) -> None:
    asked = job(tmp_path / "out", copy, tasks=["vqa"], limit_images=1, limit=None)
    run(asked, loaded)
    path = copy / "answers.json"
    path.write_text(path.read_text() + "\n")
    progress = Notes()
    run(asked, loaded, progress=progress)
    [note] = progress.notes
    assert "task.data.answers.sha256: " in note
    assert len(jobs.records(tmp_path / "out")) == 16


@pytest.mark.slow
def test_a_mended_image_is_asked_about_again(loaded: tuple[Any, Any], copy: Path, tmp_path: Path) -> None:
    asked = job(tmp_path / "out", copy)
    image = first_image(asked)
    content = image.read_bytes()
    image.unlink()
    runs = run(asked, loaded)
    failed = gather(runs).outcomes[0].counts["failed"]
    assert failed > 0
    for broken in (b"", b"broken", content):
        image.write_bytes(broken)
        runs = run(asked, loaded)
    counts = gather(runs).outcomes[0].counts
    assert (counts["failed"], counts["answered"]) == (0, 24)
    whole = job(tmp_path / "whole", copy)
    assert finished(asked, runs) == finished(whole, run(whole, loaded))


@pytest.mark.parametrize("again", [True, False])
def test_failures_are_tried_again_unless_told_otherwise(
    again: bool, loaded: tuple[Any, Any], copy: Path, tmp_path: Path
) -> None:
    asked = job(tmp_path / "out", copy, retry_errors=again)
    first_image(asked).unlink()
    failed = gather(run(asked, loaded)).outcomes[0].counts["failed"]
    records = len(jobs.records(tmp_path / "out"))
    progress = Notes()
    counts = gather(run(asked, loaded, progress=progress)).outcomes[0].counts
    assert len(jobs.records(tmp_path / "out")) == records + (failed if again else 0)
    assert counts["failed"] == failed
    assert bool(progress.active) == again


@pytest.mark.parametrize("methods", [["fastv+divprune"], ["greedy", "fastv+divprune"]])
def test_methods_that_do_not_go_together_are_refused_before_any_work(
    methods: list[str], loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="one method that drops or merges tokens at a time"):
        run(job(tmp_path, world, methods=methods), loaded)
    assert not (tmp_path / "pope").exists()


def test_two_names_of_the_same_settings_share_their_answers(
    loaded: tuple[Any, Any], small: Path, tmp_path: Path
) -> None:
    twice = job(tmp_path, small, methods=["var", {"var": {"moved_fraction": 0.4}}], limit=3)
    runs = run(twice, loaded)
    assert runs[0].path == runs[1].path
    assert len(jobs.records(tmp_path)) == 3
    publish(gather(runs), tmp_path, runs)
    [task] = jobs.read(tmp_path / "metrics.json")["tasks"]
    assert [each["counts"]["answered"] for each in task["methods"]] == [3, 3]


def test_a_method_without_values_for_the_model_is_refused_before_any_work(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no schedule of PyramidDrop is published for 8 layers"):
        run(job(tmp_path, world, methods=["greedy", "pyramid_drop"]), loaded)
    assert jobs.records(tmp_path) == []


def test_texts_that_cannot_be_written_down_name_their_file(
    loaded: tuple[Any, Any], copy: Path, tmp_path: Path
) -> None:
    path = copy / "questions.json"
    path.write_text(path.read_text().replace("How many", "How \\ud800 many"))
    asked = job(tmp_path / "out", copy, tasks=["vqa"], limit=None)
    with pytest.raises(ValueError, match=r"questions\.json, line 1: '\\ud800' is a lone surrogate"):
        run(asked, loaded)


def test_a_path_that_no_system_takes_is_a_failure_of_its_sample(
    loaded: tuple[Any, Any], copy: Path, tmp_path: Path
) -> None:
    path = copy / "instances.json"
    path.write_text(path.read_text().replace("000000000001.png", "1\\u0000.png"))
    asked = job(tmp_path / "out", copy, tasks=["chair"], limit=None)
    [outcome] = gather(run(asked, loaded)).outcomes
    assert (outcome.counts["failed"], outcome.counts["answered"]) == (1, 5)
    assert outcome.failures == {"FileNotFoundError": 1}


def test_the_manifest_tells_a_person_what_was_done(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["vlmfix", "eval", "pope"])
    [plan] = run(job(tmp_path, world, methods=["var"], limit=2), loaded)
    manifest = jobs.read(plan.path / "manifest.json")
    assert manifest["key"]["library"] == vlmfix.__version__
    assert manifest["key"]["methods"][0]["name"] == "var"
    path = world / "synthetic_pope_random.json"
    assert manifest["info"]["data"]["pope synthetic random"]["file"] == str(path)
    assert manifest["info"]["first_prompt"].startswith("USER: <image>")
    assert manifest["info"]["started_at"].endswith("Z")
    assert manifest["info"]["command"] == "vlmfix eval pope"
    assert plan.path.name == f"var-{manifest['digest'][:8]}"


@pytest.mark.parametrize(("tokens", "size"), [(4, 32), (64, 32), (65, 16), (512, 16)])
def test_batches_are_smaller_where_answers_are_long(tokens: int, size: int) -> None:
    protocol = jobs.PROTOCOL.with_(max_new_tokens=tokens)
    assert default_batch_size("cpu", protocol) == default_batch_size("cpu", protocol, 7 * 10**9) == size
    assert default_batch_size("cpu", protocol, 5 * 10**6) == 64


@pytest.mark.parametrize(("size", "largest"), [(0, 64), (5, 5)])
def test_batches_have_the_size_of_the_job(
    size: int, largest: int, loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    asked = jobs.draws(jobs.samples(tmp_path / "images", images=22))
    how = Assignment(Variant("greedy", ()), jobs.PROTOCOL, size, None)
    answers = LocalHost(*loaded).answers([Request(how, asked, lambda *_: {})])
    batches = [records for _, records in answers]
    assert max(map(len, batches)) == largest


def test_the_runs_of_the_latest_job_without_a_model(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    run(job(tmp_path, world, methods=["vhr"], limit=2), loaded)
    methods = ["greedy", {"var": {"moved_fraction": 0.6}}]
    latest = job(tmp_path, world, tasks=["vqa", "pope"], methods=methods, limit=2)
    runs = run(latest, loaded)
    again = read_plans(tmp_path)
    assert [(each.task.name, each.variant, each.path, each.samples) for each in again] == [
        (each.task.name, each.variant, each.path, each.samples) for each in runs
    ]
    assert finished(latest, again) == finished(latest, runs)


def test_runs_about_other_data_are_not_scored_again(
    loaded: tuple[Any, Any], copy: Path, tmp_path: Path
) -> None:
    run(job(tmp_path / "out", copy, tasks=["vqa"], limit=3), loaded)
    path = copy / "answers.json"
    path.write_text(path.read_text().replace('"no"', '"yes"'))
    message = r"vqa/greedy-\w{8} is about other data .*task\.data\.answers\.sha256"
    with pytest.raises(ResumeError, match=message):
        read_plans(tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"settings": {}, "runs": 5}', "is damaged"),
        ('{"settings": 5, "runs": []}', "is damaged"),
        ('{"settings": {}, "runs": [{"task": "pope"}]}', "is damaged"),
        ('{"settings": {"tasks": ["pope"], "data": "WORLD"}, "runs": []}', "lists no run of pope · greedy"),
        ('{"settings": {"tasks": ["nope"]}, "runs": []}', "unknown task 'nope'"),
    ],
)
def test_a_damaged_list_of_runs(content: str, message: str, world: Path, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(content.replace("WORLD", str(world)))
    with pytest.raises(ValueError, match=message):
        read_plans(tmp_path)


def test_no_job(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no job \(no job\.json\); run vlmfix eval --output"):
        read_plans(tmp_path)


def sample(cluster: str) -> Sample:
    return Sample(f"pope/{cluster}/1", cluster, None, "?", "yes", {})


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_sample_belongs_to_one_share(of: int) -> None:
    clusters = [f"{number}.jpg" for number in range(200)]
    shares = [Shard(index, of) for index in range(of)]
    owners = [[shard.index for shard in shares if shard.takes(sample(cluster))] for cluster in clusters]
    assert all(len(each) == 1 for each in owners)
    questions = [Sample(f"pope/{cluster}/2", cluster, None, "?", "yes", {}) for cluster in clusters]
    assert owners == [[shard.index for shard in shares if shard.takes(each)] for each in questions]
    counts = [owners.count([index]) for index in range(of)]
    assert min(counts) > 0.5 * 200 / of


@pytest.mark.parametrize(
    ("text", "shard"), [("0/1", Shard(0, 1, 0)), ("2/3", Shard(2, 3, 2)), ("10/11", Shard(10, 11, 10))]
)
def test_shares_by_hand(text: str, shard: Shard) -> None:
    assert Shard.parse(text) == shard
    assert str(shard) == f"{shard.index}-of-{shard.of}"


@pytest.mark.parametrize(
    "text", ["", "1", "1/1", "2/1", "-1/2", "0/0", "a/b", "1/2/3", "0.5/2", " 0/2", "²/3"]
)
def test_no_shares(text: str) -> None:
    with pytest.raises(ValueError, match="it must be i/n with i from 0 to n - 1, such as 0/4"):
        Shard.parse(text)


VARIABLES = [
    name
    for kind in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    for name in (kind, f"OMPI_COMM_WORLD_{kind.removeprefix('WORLD_')}")
] + ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_SIZE"]


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({}, Shard(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Shard(5, 8, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Shard(1, 2, 0)),
        (
            {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            Shard(3, 4, 1),
        ),
        ({"RANK": "", "WORLD_SIZE": ""}, Shard(0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Shard(0, 1, 0)),
    ],
    ids=str,
)
def test_shares_from_launchers(
    variables: dict[str, str], shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Shard.from_environment() == shard


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "3"}, "RANK=3"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "a"}, "LOCAL_RANK=a"),
    ],
    ids=str,
)
def test_environments_that_are_no_share(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"the environment says .*{said}.*unset these variables"):
        Shard.from_environment()


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("0-of-3-000.jsonl", True),
        ("2-of-3-000.jsonl", True),
        ("1-of-3-000.jsonl", False),
        ("0-of-3-001.jsonl", False),
        ("0-of-2-000.jsonl", False),
    ],
)
def test_records_of_workers_that_were_started_together(name: str, beside: bool) -> None:
    assert Shard(1, 3).is_beside(Path(name)) == beside
