"""Files that appear as a whole or not at all, also beside other processes and when one is killed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text; the file is either whole or as it was, whenever the process is killed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes; the file is either whole or as it was, whenever the process is killed."""
    partial = beside(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """A name for a file that is not finished; process numbers may be the same on other hosts."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")
