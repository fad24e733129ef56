"""Programs in forks of the test process, which has imported torch already."""

from __future__ import annotations

import faulthandler
import importlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vlmfix.cli import main

_PATIENCE = 300
"""Seconds until a process counts as one that hangs."""


class Fork:
    """A fork of this process that does some work and ends.

    Args:
        work: ends the process with its `SystemExit`, with 1 after any other exception, and else with 0.
        log: receives stdout and stderr.
        errors: receives stderr in its place.
    """

    def __init__(self, work: Callable[[], object], log: Path, errors: Path | None = None) -> None:
        self.log = log
        self._code = 0
        self._deadline = time.monotonic() + _PATIENCE
        self.process = os.fork()
        if self.process == 0:
            code = 1
            try:
                sys.stdout = _into(log, 1)
                sys.stderr = _into(errors, 2) if errors else _into(log, 2)
                faulthandler.register(signal.SIGUSR1, file=sys.stderr)
                work()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def send(self, number: int, when: Callable[[], bool]) -> int:
        """Send a signal as soon as something holds, and wait; the exit status, or minus the signal."""
        while not when():
            if self._has_ended():
                raise AssertionError(f"ended too early: {self.log.read_text()}")
        os.kill(self.process, number)
        return self.wait()

    def kill_when(self, holds: Callable[[], bool]) -> bool:
        """Kill it as soon as something holds; whether that came before its end."""
        while not holds():
            if self._has_ended():
                return False
        os.kill(self.process, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        while not self._has_ended():
            pass
        return self._code

    def _has_ended(self) -> bool:
        """Whether it has, after a moment; one that hangs writes down where, and is killed."""
        process, status = os.waitpid(self.process, os.WNOHANG)
        if process:
            self._code = os.waitstatus_to_exitcode(status)
            return True
        if time.monotonic() > self._deadline:
            os.kill(self.process, signal.SIGUSR1)
            time.sleep(1)
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            raise AssertionError(f"no end after {_PATIENCE} seconds: {self.log.read_text()}")
        time.sleep(0.002)
        return False


def _into(path: Path, number: int) -> io.TextIOWrapper:
    """Let a descriptor write to the end of a file."""
    os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    return io.TextIOWrapper(io.FileIO(number, "w", False), write_through=True)


def vlmfix(*arguments: object) -> None:
    """The command line in this process, as its console script runs it."""
    sys.argv = ["vlmfix", *map(str, arguments)]
    main()


def run_in(folder: Path, program: str, arguments: Sequence[str], path: Sequence[Path]) -> str:
    """What a program prints on stdout that a person starts in a folder; it has to be a success.

    Args:
        folder: the working directory.
        program: "vlmfix" or "pytest".
        path: folders of packages that the program finds first.
    """

    def work() -> None:
        os.chdir(folder)
        sys.path[:0] = map(str, path)
        importlib.invalidate_caches()
        if program == "vlmfix":
            vlmfix(*arguments)
        else:
            raise SystemExit(pytest.main(list(arguments)))

    log, errors = folder / ".stdout", folder / ".stderr"
    log.unlink(missing_ok=True)
    fork = Fork(work, log, errors)
    code = fork.wait()
    assert code == 0, f"{program} {arguments}\n{log.read_text()}{errors.read_text()}"
    return log.read_text()
