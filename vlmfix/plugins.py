"""Entry points of other packages, by which they add methods and benchmarks."""

from __future__ import annotations

import functools
import os
import sys
from importlib.metadata import EntryPoint, entry_points


def plugins(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, as the packages that are installed now name them."""
    return _read(group, tuple((path, _changed(path)) for path in sys.path))


@functools.lru_cache
def _read(group: str, paths: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Reads what every installed package says of itself, which takes milliseconds; kept while the folders
    stay as they are."""
    return tuple(entry_points(group=group))


def _changed(path: str) -> int:
    """When packages came into a folder or left it, in nanoseconds; 0: it is none."""
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0
