"""Workers in one output folder: each has its share, and what one leaves, others do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.runner.test_executor import TWO, finished, job, run
from tests.support import jobs
from tests.support.leases import dead_process, held
from tests.support.reports import Notes
from vlmfix.evaluation.report.collect import gather
from vlmfix.evaluation.runner import shares as module
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.host import LocalHost
from vlmfix.evaluation.runner.lease import EXPIRY, Lease, living
from vlmfix.evaluation.runner.plan import prepare
from vlmfix.evaluation.runner.run_store import ResumeError
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.runner.shares import answer_shares, at_work


def test_a_job_holds_its_share_while_it_works(tmp_path: Path) -> None:
    with at_work(tmp_path, Shard(1, 3), steal=False) as has_share:
        assert has_share
        assert [each.path.stem for each in living(tmp_path)] == ["1-of-3"]
        with at_work(tmp_path, Shard(0, 3), steal=False) as beside:
            assert beside
    assert living(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "shard", "said"),
    [
        ("0-of-1", Shard(), "another job is at work in OUT (host elsewhere, process 4, last sign of life 1 s "
         "ago); wait for it or choose another --output; if it is dead, start again in 10 min, or delete "
         "OUT/leases/0-of-1.json"),
        ("2-of-4", Shard(2, 4), "a job on share 2/4 is at work in OUT ("),
        ("2-of-4", Shard(), "a job on share 2/4 is at work in OUT ("),
        ("2-of-4", Shard(), ", or take a share of its work with --shard i/4; if"),
        ("0-of-1", Shard(0, 2), "another job is at work in OUT ("),
    ],
)  # fmt: skip
def test_work_that_is_done_already_is_refused(name: str, shard: Shard, said: str, tmp_path: Path) -> None:
    held(tmp_path, name)
    with (
        pytest.raises(ResumeError, match=re.escape(said.replace("OUT", str(tmp_path)))),
        at_work(tmp_path, shard, steal=False),
    ):
        pass
    assert [each.path.stem for each in living(tmp_path)] == [name]


def test_a_share_beside_others_is_not_refused(tmp_path: Path) -> None:
    held(tmp_path, "0-of-2")
    held(tmp_path, module.REPORT)
    with at_work(tmp_path, Shard(1, 2), steal=False) as has_share:
        assert has_share


@pytest.mark.parametrize("name", ["0-of-1", "1-of-2"])
def test_the_dead_are_in_nobodys_way(name: str, tmp_path: Path) -> None:
    held(tmp_path, name, age=EXPIRY + 1)
    held(tmp_path, "0-of-3", host=os.uname().nodename, pid=dead_process())
    with at_work(tmp_path, Shard(), steal=False) as has_share:
        assert has_share


def test_a_worker_whose_share_is_done_by_another_helps(tmp_path: Path) -> None:
    held(tmp_path, "0-of-2")
    with at_work(tmp_path, Shard(0, 2), steal=True) as has_share:
        assert not has_share


class Crowd:
    """Shares with work left, and what happens while a worker waits."""

    def __init__(self, folder: Path, missing: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.missing = folder, missing
        self.answered: list[int] = []
        self.notes: list[str] = []
        self.events: list[Callable[[], object]] = []
        monkeypatch.setattr(module.time, "sleep", lambda seconds: self.events.pop(0)())

    def answer(self, shard: Shard) -> None:
        names = [each.path.stem for each in living(self.folder)]
        assert str(shard) in names
        self.answered.append(shard.index)
        self.missing.discard(shard.index)

    def work(self, shard: Shard, *, steal: bool = True) -> None:
        with at_work(self.folder, shard, steal=steal) as has_share:
            answer_shares(
                self.folder,
                shard,
                held=has_share,
                left=lambda: set(self.missing),
                answer=self.answer,
                note=self.notes.append,
            )


def test_what_nobody_does_is_done_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(tmp_path, {0, 1, 3}, monkeypatch)
    crowd.work(Shard(2, 4))
    assert crowd.answered == [3, 0, 1]
    assert crowd.notes == [f"takes over what is left of share {index}/4" for index in (3, 0, 1)]
    assert list(tmp_path.iterdir()) == []


def test_what_others_do_is_left_to_them_while_they_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(tmp_path, {0, 1, 2}, monkeypatch)
    slow, dying = held(tmp_path, "1-of-3"), held(tmp_path, "2-of-3")

    def ends() -> None:
        crowd.missing.discard(1)
        slow.unlink()

    crowd.events = [lambda: None, lambda: os.utime(dying, (1, 1)), ends]
    crowd.work(Shard(0, 3))
    assert crowd.answered == [0, 2]
    assert crowd.notes == [
        "waits for the workers on 1/3, 2/3, to take over what they leave",
        "takes over what is left of share 2/3",
        "waits for the workers on 1/3, to take over what they leave",
    ]
    assert crowd.events == []


def test_a_share_that_ends_before_it_is_taken_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(tmp_path, {1}, monkeypatch)
    take = Lease.take

    def ended(folder: Path, name: str) -> Lease | None:
        if name == "1-of-2":
            crowd.missing.clear()
        return take(folder, name)

    monkeypatch.setattr(Lease, "take", ended)
    crowd.work(Shard(0, 2))
    assert (crowd.answered, crowd.notes) == ([], [])


def test_a_share_comes_back_to_the_one_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(tmp_path, {0}, monkeypatch)
    path = held(tmp_path, "0-of-2")
    crowd.events = [lambda: os.utime(path, (1, 1))]
    crowd.work(Shard(0, 2))
    assert crowd.answered == [0]


def test_a_worker_that_was_killed_leaves_its_samples_to_the_others(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    alone, output = job(tmp_path / "alone", world, **TWO), tmp_path / "shared"
    shared = job(output, world, **TWO, batch_size=1)

    class Killed(Notes):
        def advance(self, records: Any, scores: Any) -> None:
            jobs.die()

    def work() -> None:
        with at_work(output, Shard(0, 2), steal=True) as has_share:
            execute(
                shared, prepare(shared), LocalHost(*loaded), Shard(0, 2), Killed(), held=has_share, steal=True
            )

    assert jobs.in_child(work) == -9
    assert len(jobs.records(output)) == 1
    assert [path.name for path in (output / "leases").iterdir()] == ["0-of-2.json"]
    notes = Notes()
    with at_work(output, Shard(1, 2), steal=True) as has_share:
        runs = execute(
            shared, prepare(shared), LocalHost(*loaded), Shard(1, 2), notes, held=has_share, steal=True
        )
    assert "takes over what is left of share 0/2" in notes.notes
    assert finished(shared, runs) == finished(alone, run(alone, loaded))
    assert gather(runs).total == len(jobs.records(output))


def test_matched_baselines_are_shared_as_well(loaded: tuple[Any, Any], world: Path, tmp_path: Path) -> None:
    alone, shared = (
        job(tmp_path / name, world, tasks=["pope"], methods=["var"], baselines=True, limit=4)
        for name in ("alone", "shared")
    )
    whole = run(alone, loaded)
    runs = execute(shared, prepare(shared), LocalHost(*loaded), Shard(1, 2), Notes(), steal=True)
    assert [plan.path.name for plan in runs] == [plan.path.name for plan in whole]
    assert finished(shared, runs) == finished(alone, whole)


@pytest.mark.parametrize("moment", ["before the first answer", "after the first answer"])
def test_an_output_folder_that_was_removed_is_not_blamed_on_pictures(
    moment: str, loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    data = shutil.copytree(world, output / "data" / "scenes")
    removed = job(output, data, batch_size=1, max_errors=0)

    class Removing(Notes):
        def begin(self, *told: Any) -> Notes:
            if moment == "before the first answer":
                shutil.rmtree(output)
            return self

        def advance(self, *told: Any) -> None:
            shutil.rmtree(output)

    with pytest.raises(OSError, match=f"^the output folder {output} is gone: it was removed or moved while"):
        run(removed, loaded, progress=Removing())
    assert not output.exists()


def test_an_output_folder_that_was_removed_while_the_model_was_loaded(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path
) -> None:
    removed = job(tmp_path / "out", world)
    tasks = prepare(removed)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OSError, match=f"^the output folder {tmp_path}/out is gone"):
        execute(removed, tasks, LocalHost(*loaded), Shard(), Notes())
