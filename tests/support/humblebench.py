"""Rows of HumbleBench, invented."""

from __future__ import annotations

from typing import Any

DOG = "What is left of the dog?\nA. cat\nB. car\nC. tree\nD. man\nE. None of the above"

VECTOR = [
    ("A", "A"),
    ("B", "B."),
    ("E", "E"),
    ("E", "E."),
    ("E", " E"),
    ("C", "E"),
    ("D", "The answer is B"),
    ("A", "A cat"),
]
"""What is right, and an answer, as in the specification."""


def row(number: int, label: str, **more: Any) -> dict[str, Any]:
    """A row in the form of the published data."""
    image = {"path": f"pictures/{number // 2}.jpg", "bytes": None}
    kind = ("Object", "Relation")[number % 2]
    return {"question_id": number, "image": image, "question": DOG, "label": label, "type": kind, **more}


def rows(**more: list[Any]) -> list[dict[str, Any]]:
    """The rows of the vector, with further fields, a list of values each."""
    return [
        row(at, label, **{name: values[at] for name, values in more.items()})
        for at, (label, _) in enumerate(VECTOR)
    ]


def without_answer(one: dict[str, Any]) -> dict[str, Any]:
    """A row as the variant `humble_e` has it."""
    lines = one["question"].split("\n")
    kept = [line for line in lines if one["label"] == "E" or not line.startswith(f"{one['label']}.")]
    return one | {"label": "E", "question": "\n".join(kept)}
