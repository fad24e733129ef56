"""AMBER, discriminative part: parsers, and the figures of the official script on the example of its rules."""

from __future__ import annotations

import pytest
from vlmfix.evals.amber.official import EXISTENCE_EPSILON, OfficialScore, official_score
from vlmfix.evals.amber.parsers import PARSERS, amber_official

EXISTENCE = [("No", "no"), ("No", "no"), ("Yes", "no"), ("No", "no")]
ATTRIBUTE = [("Yes", "yes"), ("yes", "yes"), ("No", "yes"), ("No", "no"), ("No", "no"), ("Yes", "no")]
"""Answers and what is right."""


def official(rows: list[tuple[str, str]], **settings: float) -> OfficialScore:
    verdicts = [amber_official(text, label) for text, label in rows]  # type: ignore[arg-type]
    return official_score(verdicts, [label for _, label in rows], **settings)  # type: ignore[misc]


def test_blocks() -> None:
    assert official(EXISTENCE, epsilon=EXISTENCE_EPSILON) == OfficialScore(75.0, 100.0, 75.0, 85.7)
    assert official(ATTRIBUTE) == OfficialScore(50.0, 66.6, 66.6, 66.6)
    assert official(EXISTENCE + ATTRIBUTE) == OfficialScore(60.0, 83.3, 71.4, 76.9)


def test_empty_denominators() -> None:
    assert official([("Yes", "no")]) == OfficialScore(0, 0, 0, 0)
    assert official([("Yes", "yes")]) == OfficialScore(99.9, 0, 0, 0)  # of 1.001 answers


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("Yes", "yes", "yes"),
        ("No", "no", "no"),
        ("yes", None, "yes"),
        ("Yes.", None, "yes"),
        (" Yes", None, "yes"),
        ("No, there is none", None, "no"),
        ("Unknown", None, None),
        ("", None, None),
    ],
)
def test_parsers(text: str, official: str | None, strict: str | None) -> None:
    assert PARSERS["amber_official"](text, "yes") == official
    assert PARSERS["strict"](text, "yes") == strict
