"""Shards: the part of the work that a process takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vlmfix.evaluation.files.hashing import shard
from vlmfix.evaluation.sample import Sample

# Number of a process, of all processes, and of the process on its host, as launchers tell them.
_VARIABLES = (
    (("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"), 0),
    (("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"), 1),
    (("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"), 0),
)


@dataclass(frozen=True)
class Shard:
    """Which part of the work a process takes.

    Args:
        index: it takes images whose hash modulo `of` is this.
        of: number of processes.
        local: number of the process on its host.
    """

    index: int = 0
    of: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Shard:
        """What `accelerate launch`, `torchrun` or `mpirun` tell a process; all of it if nothing did.

        Raises:
            ValueError: variables that do not go together.
        """
        found = [
            next(((name, os.environ[name]) for name in names if os.environ.get(name)), ("", str(default)))
            for names, default in _VARIABLES
        ]
        (_, index), (_, of), (_, local) = found
        if not all(value.isdecimal() for value in (index, of, local)) or int(index) >= int(of):
            said = ", ".join(f"{name}={value}" for name, value in found if name)
            raise ValueError(
                f"the environment says {said}, which is no share of the work; unset these variables, or give "
                "--shard i/n"
            )
        return cls(int(index), int(of), int(local))

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
