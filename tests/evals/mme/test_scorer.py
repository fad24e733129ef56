"""MME: parsers, scores of subtasks and sums on answers worked out by hand."""

from __future__ import annotations

import pytest
from vlmfix.evals.mme.parsers import PARSERS
from vlmfix.evals.mme.scorer import Score, score, sum_of
from vlmfix.evals.mme.subtasks import ALL, COGNITION, HALLUCINATION, PERCEPTION, sums_of


@pytest.mark.parametrize(
    ("text", "label", "official", "mme"),
    [
        ("Yes", "yes", "yes", "yes"),
        (" yes, it is", "yes", "yes", "yes"),
        ("   no", "no", None, "no"),
        ("No.", "no", "no", "no"),
        ("There is no car", "no", None, None),
        ("noyes", "no", "no", "no"),
        ("y", "yes", None, "yes"),
        ("Not at all", "no", "no", "no"),
        ("Now I see it", "yes", "no", "no"),
        ("", "yes", None, None),
        ("", "no", None, None),
        ("no yes", "yes", "no", "no"),  # yes begins within four characters and does not end there
    ],
)
def test_parsers(text: str, label: str, official: str | None, mme: str | None) -> None:
    assert PARSERS["mme_official"](text, label) == official  # type: ignore[arg-type]
    assert PARSERS["mme"](text, label) == mme  # type: ignore[arg-type]


def by_official(answers: list[tuple[str, str, str]]) -> Score:
    """The figures of images, labels and answers."""
    verdicts = [PARSERS["mme_official"](text, label) for _, label, text in answers]  # type: ignore[arg-type]
    return score(verdicts, [label for _, label, _ in answers], [image for image, *_ in answers])  # type: ignore[misc]


def test_two_images() -> None:
    found = by_official(
        [("A", "yes", "Yes"), ("A", "no", "No."), ("B", "yes", " yes"), ("B", "no", "There is none")]
    )
    assert (found.acc, found.acc_plus, found.score) == (0.75, 0.5, 125.0)
    assert found == Score(4, 3, 2, 1, true_yes=2, false_no=0, true_no=1, false_yes=0, other=1)


def test_all_right_and_always_yes() -> None:
    images = [(image, label) for image in "ABC" for label in ("yes", "no")]
    assert by_official([(image, label, label) for image, label in images]).score == 200
    always = by_official([(image, label, "yes") for image, label in images])
    assert (always.acc, always.acc_plus, always.score) == (0.5, 0, 50)
    assert (always.true_yes, always.false_yes, always.false_no, always.true_no) == (3, 3, 0, 0)


def test_images_are_grouped_wherever_their_questions_stand() -> None:
    answers = [("A", "yes", "yes"), ("B", "yes", "no"), ("A", "no", "no"), ("B", "no", "no")]
    found = by_official(answers)
    assert (found.correct, found.both) == (3, 1)
    assert found.score == 100 * (3 / 4 + 1 / 2)


def test_sums() -> None:
    right = by_official([("A", "yes", "yes"), ("A", "no", "no")])
    everything = dict.fromkeys(ALL, right)
    assert sum_of(everything, PERCEPTION).score == 2000
    assert sum_of(everything, COGNITION).score == 800
    assert sum_of(everything, HALLUCINATION).score == 800
    assert sum_of(everything, ALL).score == 2800
    part = sum_of({"existence": right, "OCR": right}, PERCEPTION)
    assert (part.score, part.subtasks, len(part.missing)) == (400, 10, 8)
    assert "count" in part.missing
    assert not sum_of(everything, ALL).missing


def test_which_sums_there_are() -> None:
    assert list(sums_of("all", ALL)) == ["", "perception", "cognition", "hallucination"]
    assert list(sums_of("all", ["OCR"])) == ["", "perception"]
    assert list(sums_of("all", ["code_reasoning"])) == ["", "cognition"]
    assert sums_of("hallucination", ["count"]) == {"": HALLUCINATION}
