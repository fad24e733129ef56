"""Leases: who is at work in an output folder, as files that show a sign of life.

A lease is a file that only one process can make, as file systems shared between hosts make one, too. Its
holder touches it all the time; one that nobody touched for a while, or whose process is dead, is free again.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vlmfix.atomic import beside, write_text

FOLDER = "leases"
EXPIRY = 600.0
"""Seconds without a sign of life after which a holder counts as dead."""
_HEARTBEAT = 30.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says.

    Args:
        path: of the lease.
        host: of its process; "" where the file is not written yet.
        pid: number of the process.
        born: when the process began, as its system counts; "" where that is not known.
        slurm: number of its SLURM job, and how often that was started again; "" outside SLURM.
        age: seconds since its last sign of life.
    """

    path: Path
    host: str
    pid: int
    born: str
    slurm: str
    age: float

    @classmethod
    def of(cls, path: Path) -> Holder | None:
        """The holder of a lease; None: nobody holds it."""
        try:
            content, age = path.read_text(encoding="utf-8"), _now(path) - path.stat().st_mtime
        except FileNotFoundError:
            return None
        try:
            own = json.loads(content)
            return cls(path, own["host"], own["pid"], own["born"], own["slurm"], age)
        except (ValueError, TypeError, KeyError):  # its process is about to write it
            return cls(path, "", 0, "", "", age)

    @property
    def is_alive(self) -> bool:
        """Whether it may still be at work: fresh, and not known to be dead."""
        if self.age > EXPIRY:
            return False
        job, _, restarts = self.slurm.partition("/")
        own_job, _, own_restarts = _slurm().partition("/")
        if job and job == own_job and restarts != own_restarts:
            return False  # SLURM ends a job before it starts it again
        return self.host != platform.node() or _is_running(self.pid, self.born)

    def __str__(self) -> str:
        """Such as "host a, process 12, last sign of life 3 s ago"."""
        seen = f"{max(0, self.age):.0f} s ago"
        return f"host {self.host or 'unknown'}, process {self.pid}, last sign of life {seen}"

    @property
    def remedy(self) -> str:
        """What helps if it is dead after all; "" where that is certain not to be the case."""
        if self.host == platform.node():
            return ""
        minutes = f"{max(1, (EXPIRY - self.age) / 60):.0f} min"
        return f"; if it is dead, start again in {minutes}, or delete {self.path}"


@dataclass
class Lease:
    """A lease of this process; a context that gives it back.

    Args:
        path: of its file.
    """

    path: Path
    _content: str
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)

    @classmethod
    def take(cls, folder: Path, name: str) -> Lease | None:
        """Take a lease that is free, or whose holder is dead; None: somebody else has it.

        Args:
            folder: of the output.
            name: of the lease.

        Raises:
            OSError: the folder cannot be written.
        """
        path = folder / FOLDER / f"{name}.json"
        content = json.dumps(
            {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid()), "slurm": _slurm()}
            | {"token": beside(path).name}
        )
        for _ in range(3):  # others may remove the folder, or the lease of a dead process, at the same time
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(content)
            except FileNotFoundError:
                continue
            except FileExistsError:
                holder = Holder.of(path)
                if holder is not None and holder.is_alive:
                    return None
                if not _take_over(path, content):
                    continue
            lease = cls(path, content)
            threading.Thread(target=lease._live, daemon=True).start()
            return lease
        return None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back, unless another process thought that this one was dead."""
        self._ended.set()
        with suppress(OSError):
            if self.path.read_text(encoding="utf-8") == self._content:
                self.path.unlink()
            self.path.parent.rmdir()  # the last one out

    def _live(self) -> None:
        while not self._ended.wait(_HEARTBEAT):
            with suppress(OSError):  # also of a folder that is gone, which the job finds out by itself
                os.utime(self.path)


def living(folder: Path) -> list[Holder]:
    """The holders of all leases in an output folder that may be at work."""
    holders = map(Holder.of, sorted((folder / FOLDER).glob("*.json")))
    return [holder for holder in holders if holder is not None and holder.is_alive]


def _take_over(path: Path, content: str) -> bool:
    """Put another content into the lease of a dead process; False: somebody else is faster."""
    guard = path.with_suffix(".guard")
    try:
        guard.open("x").close()
    except FileNotFoundError:  # the folder is gone with the lease
        return False
    except FileExistsError:
        with suppress(FileNotFoundError):
            if _now(path) - guard.stat().st_mtime > EXPIRY:  # its process was killed in the very moment
                guard.unlink()
        return False
    try:
        holder = Holder.of(path)
        if holder is None or holder.is_alive:
            return False
        write_text(path, content)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _now(path: Path) -> float:
    """The time by the clock that gives the files of a folder theirs: hosts may be minutes apart."""
    probe = beside(path)
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_running(pid: int, born: str) -> bool:
    """Whether a process of this host lives; its number may have gone to another one since."""
    if os.name != "posix":  # where asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(pid) == born


def _born(pid: int) -> str:
    """When a process began, in ticks since its host did; "" where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError, UnicodeDecodeError):
        return ""


def _slurm() -> str:
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"{job}/{os.environ.get('SLURM_RESTART_COUNT') or 0}" if job else ""
