"""Shards: the part of the work that a process takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmfix.evaluation.files.hashing import shard
from vlmfix.evaluation.sample import Sample

# What launchers tell a process: its number, that of all processes, its number on its host, and how many are
# on its host.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
)
_SPECIAL_STEPS = 0xFFFFFFF0
# Of a job array of SLURM: number of this job, of all jobs, first and last number, and the step between them.
_ARRAY = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX", "STEP"))


@dataclass(frozen=True)
class Shard:
    """Which part of the work a process takes.

    Args:
        index: it takes images whose hash modulo `of` is this.
        of: number of processes.
        local: number of the process on its host.
        on_host: number of processes on its host; 0: all of them may be.
        is_quiet: whether another process, started with it in one terminal or log, speaks for it.
    """

    index: int = 0
    of: int = 1
    local: int = 0
    on_host: int = field(default=0, compare=False)
    is_quiet: bool = field(default=False, compare=False)

    @classmethod
    def from_environment(cls, *, arrays: bool = True) -> Shard:
        """What `accelerate launch`, `torchrun`, `mpirun`, `srun` and job arrays of SLURM tell a process; all
        of it if nothing did.

        Args:
            arrays: whether every job of an array takes a share, which the processes of a launcher inside the
                job divide.

        Raises:
            ValueError: variables that do not go together.
        """
        names = next((names for names in _LAUNCHERS if _is_launched(names)), ("", "", "", ""))
        index, of, local, on_host = (
            _number(names, name, default) for name, default in zip(names, (0, 1, 0, 0), strict=True)
        )
        if index >= of:
            raise _no_share(names)
        job, jobs = _job_of_array() if arrays else (0, 1)
        if jobs > 1 and of == 1:
            on_host = 1
        return cls(job * of + index, jobs * of, local, on_host, is_quiet=index > 0)

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`i/n`, with i from 0 to n - 1.

        Raises:
            ValueError: it has another form.
        """
        first, _, second = text.partition("/")
        if first.isdecimal() and second.isdecimal() and int(first) < int(second):
            return cls(int(first), int(second), int(first))
        raise ValueError(f"--shard is {text!r}; it must be i/n with i from 0 to n - 1, such as 0/4")

    def is_beside(self, records: Path) -> bool:
        """Whether records may be of another process that was started together with this one."""
        first, _, rest = records.name.partition("-")
        return rest == f"of-{self.of}-000.jsonl" and first != str(self.index)

    def takes(self, sample: Sample) -> bool:
        """Whether a sample belongs to it; questions about one image stay together."""
        return shard(sample.cluster, self.of) == self.index

    def __str__(self) -> str:
        return f"{self.index}-of-{self.of}"


def _is_launched(names: Sequence[str]) -> bool:
    """Whether a launcher started this process."""
    if names[0] == "SLURM_PROCID":
        # SLURM numbers a batch script, too, which is alone: it is no step, or one with a special number.
        step = os.environ.get("SLURM_STEP_ID", "")
        if not step.isdecimal() or int(step) >= _SPECIAL_STEPS:
            return os.environ.get(names[0], "0") not in ("", "0")
    return any(os.environ.get(name) for name in names[:2])


def _job_of_array() -> tuple[int, int]:
    """Number of a job in its array, and of all jobs.

    Raises:
        ValueError: the array leaves numbers out, so that no job knows its place.
    """
    if not os.environ.get(_ARRAY[0]):
        return 0, 1
    id, count, first = (_number(_ARRAY, name, 0) for name in _ARRAY[:3])
    step = _number(_ARRAY, _ARRAY[4], 1) or 1
    last = _number(_ARRAY, _ARRAY[3], first + (count - 1) * step)
    if first <= id <= last and (id - first) % step == 0 and last == first + (count - 1) * step:
        return (id - first) // step, count
    raise _no_share(_ARRAY)


def _number(names: Sequence[str], name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdecimal():
        raise _no_share(names)
    return int(value)


def _no_share(names: Sequence[str]) -> ValueError:
    said = ", ".join(f"{name}={value}" for name in names if (value := os.environ.get(name)))
    return ValueError(
        f"the environment says {said}, which is no share of the work; unset these variables, or give --shard "
        "i/n"
    )
