"""Verdicts of a text judge in a file of answers, and what they say of the errors (arXiv 2310.14566)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from vlmfix.evaluation.files.readers import Record, shown

from .items import Item

CORRECTNESS, SAMENESS = "gpt4v_output_gpt_check", "same"
"""Keys of an answer's record: what the judge says of the answer, and whether it says the same as the answer
to the same question on figure 0."""

Verdict = Literal["right", "wrong", "unclear"]
_VERDICTS: Mapping[str, Verdict] = {"0": "wrong", "1": "right", "2": "unclear"}

Diagnosis = Literal["language hallucination", "visual illusion", "mixed"]
DIAGNOSES: tuple[Diagnosis, ...] = get_args(Diagnosis)
"""Kinds of errors: what was known beforehand counts more than the figure, the figure is misread, or both."""


def verdict_of(record: Record) -> Verdict | None:
    """What the judge says of an answer; None where it was not asked.

    Raises:
        ValueError: it is no verdict; a call of the judge that failed is to be made again.
    """
    value = record.get(CORRECTNESS)
    if value is None:
        return None
    found = _VERDICTS.get(_digit(value))
    if found is None:
        raise ValueError(
            f"{record.where}: {CORRECTNESS} is {shown(value)}; it must be 0 (wrong), 1 (right) or 2 "
            "(unclear); a call of the judge that failed is to be made again"
        )
    return found


def is_same(record: Record) -> bool | None:
    """Whether the answer says the same as that on figure 0; None where nobody compared them."""
    value = record.get(SAMENESS)
    return None if value is None else _digit(value) == "1"


def diagnosis(
    category: str, reference: Verdict, answer: Verdict | None, *, same: bool = False, is_edited: bool = False
) -> Diagnosis | None:
    """The kind of an error.

    Args:
        category: "VD" or "VS".
        reference: of the answer on figure 0 to the same question.
        answer: of the answer on another figure; None: it is the reference itself that is diagnosed.
        same: whether the answer says the same as the reference.
        is_edited: whether it is on an edited figure.

    Returns:
        None for an answer without error.
    """
    if category == "VD":
        if answer is None:
            return None if reference == "right" else "visual illusion"
        if answer == "right":
            return None
        return "mixed" if (reference, answer) == ("right", "wrong") and same else "visual illusion"
    if answer is None:
        return "language hallucination" if reference == "wrong" else None
    if answer == "right":
        return None
    repeats = answer == "wrong" and same
    if reference == "wrong":
        return "language hallucination" if repeats else "mixed"
    return "language hallucination" if reference == "right" and repeats and is_edited else "visual illusion"


def diagnoses(
    items: Mapping[str, Item], verdicts: Mapping[str, Verdict], same: Mapping[str, bool]
) -> dict[str, dict[str, int]]:
    """Numbers of errors of each kind by category; answers without a reference or verdict count in none.

    Args:
        items: by name.
        verdicts: on the answers to them.
        same: whether these say the same as the answer on figure 0.
    """
    references = {
        item.group: verdicts[name]
        for name, item in items.items()
        if item.figure_id == "0" and name in verdicts
    }
    categories = sorted({item.category for item in items.values()})
    found: dict[str, dict[str, int]] = {category: dict.fromkeys(DIAGNOSES, 0) for category in categories}
    for name, item in items.items():
        if name not in verdicts or item.group not in references:
            continue
        kind = diagnosis(
            item.category,
            references[item.group],
            None if item.figure_id == "0" else verdicts[name],
            same=same.get(name, False),
            is_edited=item.visual_input == "2",
        )
        if kind is not None:
            found[item.category][kind] += 1
    return found


def _digit(value: Any) -> str:
    return str(value).strip() if type(value) in (str, int) else ""
