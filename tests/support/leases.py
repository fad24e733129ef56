"""Leases of other processes, alive and dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from vlmfix.evaluation.runner.lease import FOLDER


def held(folder: Path, name: str = "0-of-1", *, age: float = 1.0, **changes: Any) -> Path:
    """The lease of a process on another host, and how many seconds ago it last showed a sign of life."""
    path = folder / FOLDER / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"host": "elsewhere", "pid": 4, "born": "", "slurm": "", "token": "theirs"} | changes
    path.write_text(json.dumps(content))
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def dead_process() -> int:
    """The number of a process of this host that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
