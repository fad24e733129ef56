"""Leases: one holder at a time, and none that is dead."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leases import dead_process, held
from vlmfix.evaluation.runner import lease as module
from vlmfix.evaluation.runner.lease import EXPIRY, Holder, Lease, living


@pytest.fixture
def stranger() -> Iterator[int]:
    """The number of a process of this host that lives."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def test_one_process_has_it_until_it_gives_it_back(tmp_path: Path) -> None:
    first = Lease.take(tmp_path, "0-of-1")
    assert first is not None
    with first:
        assert Lease.take(tmp_path, "0-of-1") is None
        [holder] = living(tmp_path)
        assert (holder.host, holder.pid) == (platform.node(), os.getpid())
        second = Lease.take(tmp_path, "1-of-2")
        assert second is not None
        with second:
            assert [each.path.stem for each in living(tmp_path)] == ["0-of-1", "1-of-2"]
        assert [each.path.stem for each in living(tmp_path)] == ["0-of-1"]
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_want_it_one_gets_it(tmp_path: Path) -> None:
    held(tmp_path, age=EXPIRY + 1)
    start, found = threading.Barrier(8), []

    def take() -> None:
        start.wait()
        found.append(Lease.take(tmp_path, "0-of-1"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert sum(each is not None for each in found) == 1


@pytest.mark.parametrize(("age", "free"), [(0, False), (EXPIRY - 60, False), (EXPIRY + 1, True)])
def test_a_holder_on_another_host_counts_as_dead_when_it_shows_no_sign_of_life(
    age: float, free: bool, tmp_path: Path
) -> None:
    held(tmp_path, age=age)
    assert [each.host for each in living(tmp_path)] == ([] if free else ["elsewhere"])
    assert (Lease.take(tmp_path, "0-of-1") is not None) == free


def test_a_holder_on_this_host_that_was_killed_is_dead_at_once(tmp_path: Path) -> None:
    held(tmp_path, host=platform.node(), pid=dead_process())
    assert living(tmp_path) == []
    assert Lease.take(tmp_path, "0-of-1") is not None


def test_a_holder_on_this_host_that_lives_keeps_it(stranger: int, tmp_path: Path) -> None:
    path = held(tmp_path, host=platform.node(), pid=stranger, born=module._born(stranger))
    assert Lease.take(tmp_path, "0-of-1") is None
    assert json.loads(path.read_text())["token"] == "theirs"


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the system does not say when processes began"
)
def test_a_number_that_went_to_another_process_is_dead(stranger: int, tmp_path: Path) -> None:
    held(tmp_path, host=platform.node(), pid=stranger, born="1")
    assert Lease.take(tmp_path, "0-of-1") is not None


@pytest.mark.parametrize(
    ("job", "restarts", "free"), [("7", "1", True), ("7", "", False), ("8", "1", False), ("", "1", False)]
)
def test_slurm_starts_a_job_again_when_it_has_ended(
    job: str, restarts: str, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(tmp_path, slurm="7/0")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    assert (Lease.take(tmp_path, "0-of-1") is not None) == free


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}'])
def test_a_lease_that_is_not_written_yet_is_held(content: str, tmp_path: Path) -> None:
    path = held(tmp_path)
    path.write_text(content)
    assert Lease.take(tmp_path, "0-of-1") is None
    os.utime(path, (1, 1))
    assert Lease.take(tmp_path, "0-of-1") is not None


def test_a_sign_of_life_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEARTBEAT", 0.01)
    touched = threading.Event()
    monkeypatch.setattr(module.os, "utime", lambda path: touched.set())
    lease = Lease.take(tmp_path, "0-of-1")
    assert lease is not None
    with lease:
        assert touched.wait(5)


def test_a_lease_that_another_process_took_over_is_not_given_back(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "0-of-1")
    assert lease is not None
    with lease:
        path = held(tmp_path)
    assert json.loads(path.read_text())["token"] == "theirs"


def test_giving_it_back_where_the_folder_is_gone(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path / "out", "0-of-1")
    assert lease is not None
    with lease:
        (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert not (tmp_path / "out").exists()


def test_a_lease_that_was_taken_over_meanwhile_is_left_to_its_new_holder(tmp_path: Path) -> None:
    """Two processes find the same dead holder, and one of them is slower."""
    path = held(tmp_path, age=0)
    assert not module._take_over(path, "mine")
    assert json.loads(path.read_text())["token"] == "theirs"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_process_that_was_killed_while_it_took_over_is_in_nobodys_way_for_long(tmp_path: Path) -> None:
    guard = held(tmp_path, age=EXPIRY + 1).with_suffix(".guard")
    guard.touch()
    assert Lease.take(tmp_path, "0-of-1") is None
    os.utime(guard, (1, 1))
    assert Lease.take(tmp_path, "0-of-1") is not None
    assert not guard.exists()


def test_clocks_of_hosts_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages are taken by the clock of the file system."""
    monkeypatch.setattr("time.time", lambda: 4e9)
    holder = Holder.of(held(tmp_path, age=5))
    assert holder is not None
    assert 4.5 < holder.age < 60


def test_it_says_who_holds_it_and_what_helps(tmp_path: Path) -> None:
    path = held(tmp_path, age=60)
    holder = Holder.of(path)
    assert str(holder) == "host elsewhere, process 4, last sign of life 60 s ago"
    assert holder is not None
    assert holder.remedy == f"; if it is dead, start again in 9 min, or delete {path}"
    own = Lease.take(tmp_path, "1-of-2")
    assert own is not None
    with own:
        holder = Holder.of(own.path)
        assert holder is not None
        assert holder.remedy == ""
