"""Files of several processes: each one appears as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vlmfix.atomic import beside, write_text

# Room that a job wants to find before it starts work.
_FREE_BYTES = 20_000_000


def check_writable(directory: Path) -> None:
    """Make a directory and see that it takes files, before any work is done.

    Raises:
        OSError: it does not; the message says why.
    """
    probe = beside(directory / "write-test")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"0" * 65536)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to {directory} ({error.strerror}); choose another --output") from error
    free = shutil.disk_usage(directory).free
    if free < _FREE_BYTES:
        raise OSError(
            f"only {free / 1e6:.0f} MB are free for {directory}, and {_FREE_BYTES / 1e6:.0f} MB are needed; "
            "make room or choose another --output"
        )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON value; the file is either whole or as it was, whenever the process is killed."""
    write_text(path, _pretty(content))


def create_json(path: Path, content: Any) -> None:
    """Write a value unless there is a file; of several processes, one wins."""
    if path.exists():
        return
    partial = beside(path)
    partial.write_text(_pretty(content), encoding="utf-8")
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _pretty(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
