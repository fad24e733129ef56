"""Shares that SLURM gives."""

from __future__ import annotations

import pytest

from vlmfix.evaluation.runner.shard import Shard

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK")


def step(index: int, of: int, local: int = 0, **further: str) -> dict[str, str]:
    """What `srun` tells a process."""
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(index),
        "SLURM_NTASKS": str(of),
        "SLURM_LOCALID": str(local),
        **further,
    }


def array(id: int, count: int, **further: object) -> dict[str, str]:
    """What a job of an array is told."""
    found = {"ID": id, "COUNT": count, **further}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in found.items()}


BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("variables", "shard", "on_host", "is_quiet"),
    [
        (step(0, 4), Shard(0, 4), 0, False),
        (step(3, 4, 1), Shard(3, 4, 1), 0, True),
        (step(0, 1), Shard(), 0, False),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, Shard(2, 4), 0, True),
        # A batch script, or a shell inside an allocation, does all of the work.
        (BATCH, Shard(), 0, False),
        (BATCH | {"SLURM_STEP_ID": str(0xFFFFFFFA)}, Shard(), 0, False),
        # A launcher inside the job knows better.
        (step(0, 1) | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Shard(5, 8, 1), 0, True),
        (BATCH | array(5, 8, MIN=0, MAX=7), Shard(5, 8), 1, False),
        (array(5, 8), Shard(5, 8), 1, False),
        (array(3, 4, MIN=1, MAX=4), Shard(2, 4), 1, False),
        (array(8, 4, MIN=0, MAX=12, STEP=4), Shard(2, 4), 1, False),
        (array(3, 1, MIN=3, MAX=3), Shard(), 0, False),
        # Processes of a job divide its share.
        (array(1, 3, MIN=0, MAX=2) | step(1, 2, 1), Shard(3, 6, 1), 0, True),
        (array(2, 3) | step(0, 2), Shard(4, 6), 0, False),
        (array(1, 2) | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, Shard(7, 8), 2, True),
    ],
    ids=str,
)
def test_shares(
    variables: dict[str, str], shard: Shard, on_host: int, is_quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = Shard.from_environment()
    assert (found, found.on_host, found.is_quiet) == (shard, on_host, is_quiet)


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("of", [1, 2])
def test_an_array_does_everything_once(first: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for id in range(first, first + 6, 2):
        for index in range(of):
            told = array(id, 3, MIN=first, MAX=first + 4, STEP=2) | step(index, of)
            for name, value in told.items():
                monkeypatch.setenv(name, value)
            found.append(Shard.from_environment())
    assert found == [Shard(index, 3 * of) for index in range(3 * of)]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (step(4, 4), "SLURM_PROCID=4, SLURM_NTASKS=4"),
        (step(0, 4) | {"SLURM_NTASKS": "x"}, "SLURM_NTASKS=x"),
        (array(5, 3, MIN=1, MAX=7), "SLURM_ARRAY_TASK_ID=5, SLURM_ARRAY_TASK_COUNT=3"),
        (array(1, 3, MIN=1, MAX=7), "SLURM_ARRAY_TASK_MAX=7"),
        (array(9, 3, MIN=0), "SLURM_ARRAY_TASK_ID=9"),
        (array(3, 4, MIN=0, STEP=2), "SLURM_ARRAY_TASK_STEP=2"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_ID=1"),
    ],
    ids=str,
)
def test_no_shares(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"the environment says .*{said}.*give --shard i/n"):
        Shard.from_environment()


def test_a_search_is_not_divided_over_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in array(2, 3).items():
        monkeypatch.setenv(name, value)
    assert Shard.from_environment(arrays=False) == Shard()
