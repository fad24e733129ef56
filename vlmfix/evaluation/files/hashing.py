"""One spelling of a value for all machines, so that equal contents have equal hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """A JSON value as text: sorted keys, separators `,` and `:`, no escaping beyond what JSON needs, no NaN.

    Raises:
        ValueError: for NaN or an infinite number.
        TypeError: for what JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value in UTF-8, as 64 hexadecimal digits.

    Raises:
        ValueError: for NaN, an infinite number, or text that is no Unicode (a lone surrogate).
        TypeError: for what JSON cannot hold.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def shard(key: str, n: int) -> int:
    """Which of `n` shards a key belongs to; contiguous pieces would balance badly."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % n


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two JSON values, as "methods[0].moved_fraction: 0.4, now 0.6"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted({*old, *new})
        return [
            line
            for name in names
            for line in differences(old.get(name), new.get(name), f"{path}.{name}" if path else str(name))
        ]
    old, new = json.loads(json.dumps([old, new]))  # tuples and lists are the same in a file
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = list(zip(old, new, strict=True))
        if all(isinstance(each, Mapping) for pair in pairs for each in pair):
            return [
                line for index, pair in enumerate(pairs) for line in differences(*pair, f"{path}[{index}]")
            ]
    return [] if old == new else [f"{path}: {brief(old)}, now {brief(new)}"]


def brief(value: Any) -> str:
    """A JSON value in at most 60 characters, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(value: Any) -> Any:
    """A value as JSON holds it: tuples as lists, sets sorted, anything else by its name."""
    return json.loads(json.dumps(value, default=_named, allow_nan=False))


def _named(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}"
    return str(value)
