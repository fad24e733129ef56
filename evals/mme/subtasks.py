"""Subtasks of MME, and the sums of their scores that are reported."""

from __future__ import annotations

from collections.abc import Collection, Mapping

HALLUCINATION = ("existence", "count", "position", "color")
"""About objects, then about attributes; the subset of papers on hallucination."""

PERCEPTION = (*HALLUCINATION, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ALL = (*PERCEPTION, *COGNITION)

SUBSETS: Mapping[str, tuple[str, ...]] = {"all": ALL, "hallucination": HALLUCINATION}
"""What a protocol asks about, by name."""

_PARTS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION}


def sums_of(subset: str, there: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The sums over a subset, by name, with all subtasks that each is over; "" is the whole subset.

    Args:
        subset: a key of `SUBSETS`.
        there: the subtasks that were asked; a sum of which none is there is left out.
    """
    parts = _PARTS if subset == "all" else {}
    sums = {"": SUBSETS[subset], **parts}
    return {name: over for name, over in sums.items() if set(over) & set(there)}


def missing(over: Collection[str], there: Collection[str]) -> list[str]:
    """Subtasks of a sum that were not asked, so that it is partial."""
    return [name for name in over if name not in there]
