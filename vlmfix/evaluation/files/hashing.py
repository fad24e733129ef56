"""One spelling of a value for all machines, so that equal contents have equal hashes."""

from __future__ import annotations

import hashlib
import json
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
