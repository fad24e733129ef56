"""The items of the vector of the specification, and more of the kind."""

from __future__ import annotations

from typing import Any

VECTOR = [
    ("VD", "0", "0", "1", "yes", "Yes, it is."),
    ("VD", "0", "1", "1", "yes", "No."),
    ("VD", "1", "0", "2", "no", "No."),
    ("VD", "1", "1", "2", "no", "no"),
    ("VS", "0", "0", "0", "yes", "I cannot tell without it"),
    ("VS", "1", "0", "1", "yes", "yes"),
]
"""Category, figure, question, visual input, what is right, and an answer."""

UNCLEAR = "Perhaps."
ANSWERS = [*(answer for *_, answer in VECTOR[:4]), UNCLEAR, "yes"]
"""Right, wrong, right, right, unclear, right."""


def row(category: str, figure: str, question: str, visual: str, target: str, **more: Any) -> dict[str, Any]:
    """An item in the form of the official file."""
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": visual,
        "set_id": "0",
        "figure_id": figure,
        "question_id": question,
        "question": f"Is it {category} {question}?",
        "gt_answer": "1" if target == "yes" else "0",
        "gt_answer_details": "",
        "sample_note": "",
        "filename": None if visual == "0" else f"./{category}/chart/0_{figure}.png",
        **more,
    }


def vector(answers: list[str] | None = None, **more: list[Any]) -> list[dict[str, Any]]:
    """The items of the vector, with answers inside and further fields, a list of values each."""
    rows = [row(*each[:5]) for each in VECTOR]
    if answers is not None:
        more["model_prediction"] = answers
    for name, values in more.items():
        for each, value in zip(rows, values, strict=True):
            each[name] = value
    return rows
