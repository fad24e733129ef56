"""What methods did, compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import vlmfix


def assert_did_the_same(found: vlmfix.Method, expected: vlmfix.Method, but: Collection[str] = ()) -> None:
    """Up to the order in which numbers were added: of a KL of two float32 distributions, 1e-7 is known.

    Args:
        but: names of details that may differ.
    """
    mine, others = (dataclasses.asdict(each.edit_stats()) for each in (found, expected))
    for each in (mine, others):
        each["details"] = {name: value for name, value in each["details"].items() if name not in but}
    assert _alike(mine, others), (mine, others)


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=2e-3, abs_tol=2e-7)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    return bool(found == expected)
