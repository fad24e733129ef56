"""Several runs in turns over the same pictures: what each of them answers, and what all of them share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vlmfix
from tests.support import jobs
from tests.support.reports import Notes
from vlmfix.engine.kept_readings import kept_readings
from vlmfix.evaluation.runner import loading, memory
from vlmfix.evaluation.runner.config import Job, make_job
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.host import LocalHost
from vlmfix.evaluation.runner.loading import KeptPictures
from vlmfix.evaluation.runner.plan import RunPlan, prepare
from vlmfix.evaluation.runner.records import Draw
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.runner.turns import _chunks, take_turns
from vlmfix.evaluation.runner.worker import Worker
from vlmfix.evaluation.runner.writing import TooManyErrorsError
from vlmfix.evaluation.sample import Sample
from vlmfix.inference.stream import AnswerStream

METHODS = ["greedy", "var", "vcd", "gift"]
# What a record says of how it was made, and not of what was answered.
_MAKING = ("written_at", "time_prefill", "time_decode", "peak_memory", "batch_size", "checksum")


def job(output: Path, data: Path, **changes: Any) -> Job:
    settings = {
        "tasks": ["pope"],
        "output": str(output),
        "data": str(data),
        "batch_size": 3,
        "baselines": False,
        "methods": METHODS,
    }
    return make_job(settings | changes)


def run(job: Job, loaded: tuple[Any, Any], progress: Notes | None = None) -> list[RunPlan]:
    return execute(job, prepare(job), LocalHost(*loaded), Shard(), progress or Notes())


def answers(runs: Sequence[RunPlan]) -> dict[str, dict[str, dict[str, Any]]]:
    """The records of each run, by sample, without how they were made."""
    found = {}
    for plan in runs:
        records = jobs.records(plan.path)
        assert len(records) == len({record["id"] for record in records})
        found[plan.variant.label] = {
            record["id"]: {name: value for name, value in record.items() if name not in _MAKING}
            for record in records
        }
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == pytest.approx(other, rel=1e-3, abs=2e-4)) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def alone(
    loaded: tuple[Any, Any], world: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, dict[str, Any]]]:
    """The records of jobs of one method each."""
    found = {}
    for name in METHODS:
        found |= answers(run(job(tmp_path_factory.mktemp(name), world, methods=[name]), loaded))
    return found


@pytest.fixture
def counts(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often pictures are opened and encoded, and batches prepared."""
    counts: Counter[str] = Counter()
    model, _ = loaded

    def counted(name: str, work: Any) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return work(*args, **kwargs)

        return count

    def encoded(module: Any, args: Any, kwargs: Any) -> None:
        counts["encoded"] += len(args[0] if args else kwargs["pixel_values"])

    monkeypatch.setattr(loading, "open_images", counted("opened", loading.open_images))
    monkeypatch.setattr(loading, "prepare_batch", counted("prepared", loading.prepare_batch))
    handle = model.model.vision_tower.register_forward_pre_hook(encoded, with_kwargs=True)
    yield counts
    handle.remove()


def test_runs_in_turns_say_what_they_say_alone(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, alone: dict[str, dict[str, dict[str, Any]]]
) -> None:
    progress = Notes()
    together = answers(run(job(tmp_path, world), loaded, progress))
    assert same(together, alone)
    begun = [title for title, *_ in progress.active if title != "end"]
    assert begun == [f"pope · {name}" for name in METHODS]
    assert len(progress.active) == 2 * len(METHODS)
    assert len(progress.statuses) == 36 * len(METHODS)
    assert kept_readings(loaded[0]) is None


def test_pictures_are_opened_prepared_and_encoded_once(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, counts: Counter[str]
) -> None:
    run(job(tmp_path, world, methods=["greedy", "var", "gift"]), loaded)
    assert counts == {"opened": 6, "prepared": 12, "encoded": 6}


def test_what_a_method_shows_or_asks_otherwise_is_prepared_for_it(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, counts: Counter[str]
) -> None:
    methods = ["greedy", "baseline.prompt_bias", "baseline.resize"]
    runs = run(job(tmp_path, world, methods=methods), loaded)
    assert (counts["opened"], counts["prepared"]) == (6, 3 * 12)
    greedy, other = (answers(runs)[name] for name in methods[:2])
    assert all(record["prompt"] != other[id]["prompt"] for id, record in greedy.items())


@pytest.mark.parametrize("further", [["greedy"], ["vcd"], ["gift", "vcd"]])
def test_runs_that_are_further_than_others(
    further: list[str],
    loaded: tuple[Any, Any],
    world: Path,
    tmp_path: Path,
    alone: dict[str, dict[str, dict[str, Any]]],
) -> None:
    stopped = job(tmp_path, world)
    for plan in run(stopped, loaded):
        [path] = (plan.path / "records").iterdir()
        lines = path.read_text().splitlines(keepends=True)
        # The others lose a line in the middle of a picture, and all that comes after it.
        path.write_text("".join(lines if plan.variant.label in further else lines[:10]))
    progress = Notes()
    together = answers(run(stopped, loaded, progress))
    for name in METHODS:
        for id, record in together[name].items():  # other batches have other numbers of passes
            assert same(record, alone[name][id] | {"forwards_per_token": record["forwards_per_token"]})
    assert [each for each in progress.active if each[0] != "end"] == [
        (f"pope · {name}", "right so far", 36, 10) for name in METHODS if name not in further
    ]


def test_too_many_failures_of_one_run_stop_the_job(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls["all"] += 1
        if calls["all"] > 4:  # those of the first run in its first turn
            raise RuntimeError("index out of range")
        return begin(*args, **kwargs)

    begin = AnswerStream.begin
    monkeypatch.setattr(AnswerStream, "begin", failing)
    progress = Notes()
    with pytest.raises(TooManyErrorsError, match="3 samples failed, more than the 2"):
        run(job(tmp_path, world, methods=["greedy", "var"], max_errors=2), loaded, progress)
    assert Counter(progress.statuses) == {"ok": 12, "error": 3}
    assert [title for title, *_ in progress.active] == ["pope · greedy", "pope · var", "end", "end"]


def test_where_memory_runs_out_readings_go_before_the_batch_is_halved(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def hungry(stream: AnswerStream, asked: Any, *args: Any, **kwargs: Any) -> Any:
        kept = kept_readings(loaded[0])
        sizes.append(len(asked))
        if kept is not None and kept.size:
            raise MemoryError
        return begin(stream, asked, *args, **kwargs)

    begin = AnswerStream.begin
    monkeypatch.setattr(AnswerStream, "begin", hungry)
    asked = jobs.draws(jobs.samples(tmp_path / "images", images=4))
    runs = [(jobs.worker(loaded, batch_size=6), asked) for _ in range(2)]
    records = [record for _, several in take_turns(runs) for record in several]
    assert [record["status"] for record in records] == ["ok"] * 24
    assert sizes == [6, 6, 6, 6, 6]  # the second batch twice


def test_what_others_read_counts_as_if_it_was_read_again(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = loaded
    asked = jobs.draws(jobs.samples(tmp_path / "images", images=2, questions=("Describe the image.",)))
    tower, slow = model.model.vision_tower.forward, 0.3

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(slow)
        return tower(*args, **kwargs)

    monkeypatch.setattr(model.model.vision_tower, "forward", slowly)
    methods = [[], [vlmfix.DoLa()], [vlmfix.VCD()]]
    [*alone] = jobs.worker(loaded, methods[2]).answers(asked)
    runs = [(jobs.worker(loaded, each), asked) for each in methods]
    plain, dola, vcd = (records for _, records in take_turns(runs))
    for records in (plain, dola):
        assert slow < sum(record["time_prefill"] for record in records) < 2 * slow
    assert sum(record["time_prefill"] for record in vcd) > 2 * slow
    assert same(
        [each["forwards_per_token"] for each in vcd], [each["forwards_per_token"] for each in alone[0]]
    )


def test_a_run_that_is_alone_does_not_stop_at_chunks(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = jobs.draws(jobs.samples(tmp_path / "images", images=6))
    given: list[int] = []
    answers = Worker.answers

    def noted(self: Worker, draws: Sequence[Draw]) -> Any:
        given.append(len(draws))
        assert kept_readings(loaded[0]) is None
        return answers(self, draws)

    monkeypatch.setattr(Worker, "answers", noted)
    numbers = [number for number, _ in take_turns([(jobs.worker(loaded, batch_size=2), asked)])]
    assert given == [18]
    assert numbers == [0] * 9


def draws(clusters: str) -> list[Draw]:
    """One for each letter, which names its picture."""
    made = []
    for number, cluster in enumerate(clusters):
        sample = Sample(f"{cluster}/{number}", cluster, None, "?", "yes", {})
        made.append(Draw(sample, 0, 0, ""))
    return made


def order(letters: str) -> list[str]:
    """The pictures in the order of a worker."""
    return list(
        dict.fromkeys(draw.sample.cluster for draw in sorted(draws(letters), key=lambda each: each.order))
    )


def shape(runs: Sequence[Sequence[Draw]], size: int) -> list[dict[int, str]]:
    return [
        {number: "".join(draw.sample.cluster for draw in part) for number, part in parts.items()}
        for parts in _chunks(runs, size)
    ]


def test_chunks_are_whole_pictures() -> None:
    a, b, c, d = order("abcd")
    runs = [draws(3 * (a + b + c + d))] * 2
    assert shape(runs, 6) == [{0: each, 1: each} for each in (3 * a + 3 * b, 3 * c + 3 * d)]
    assert shape(runs, 8) == shape(runs, 6)
    assert shape(runs, 1) == [{0: 3 * each, 1: 3 * each} for each in (a, b, c, d)]
    assert shape(runs, 12) == [{0: 3 * a + 3 * b + 3 * c + 3 * d, 1: 3 * a + 3 * b + 3 * c + 3 * d}]


def test_a_run_that_is_left_alone_goes_on_in_one_go() -> None:
    a, b, c, d = order("abcd")
    assert shape([draws(a), draws(a + b + c + d)], 1) == [{0: a, 1: a}, {1: b + c + d}]
    assert shape([draws(a + b), draws(c + d)], 1) == [{0: a + b}, {1: c + d}]
    assert shape([draws(d), draws(a + b + c + d)], 1) == [{1: a + b + c}, {0: d, 1: d}]
    assert shape([[], draws(a)], 1) == [{1: a}]


def test_pictures_are_kept_within_bytes() -> None:
    kept = KeptPictures(100)
    for name, side in (("a", 5), ("b", 5), ("c", 2)):
        kept.keep_picture(Path(name), Image.new("RGB", (side, side)))
    assert [path.name for path in kept.opened] == ["a", "c"]
    assert kept.limit == 100 - 75 - 12


@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [("max", "5000", 4096), ("3000", "1000", 2000), ("3000", "4000", 0), (None, None, 4096)],
)
def test_memory_of_a_container(
    limit: str | None, used: str | None, available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("machine", "limit", "used")]
    for path, text in zip(paths, ("MemTotal: 9 kB\nMemAvailable: 4 kB\n", limit, used), strict=True):
        if text is not None:
            path.write_text(text)
    monkeypatch.setattr(memory, "_MACHINE", paths[0])
    monkeypatch.setattr(memory, "_CONTAINER", paths[1:])
    assert memory.available_memory(torch.device("cpu")) == available


def test_memory_of_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MACHINE", tmp_path / "nothing")
    assert memory.available_memory(torch.device("cpu")) == 0
