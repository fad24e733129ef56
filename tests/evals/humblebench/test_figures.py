"""HumbleBench: the figures of the specification."""

from __future__ import annotations

import pytest
from vlmfix.evals.humblebench.figures import figures, raw_e_accuracy
from vlmfix.evals.humblebench.letters import letter_set
from vlmfix.evals.humblebench.rows import Variant

from tests.support.humblebench import VECTOR
from vlmfix.evaluation.analysis.results import Metric

LABELS = [label for label, _ in VECTOR]
TYPES = ["Object", "Relation"] * 4


def of(
    texts: list[str | None], labels: list[str] = LABELS, variant: Variant = "humble"
) -> dict[tuple[str, str], Metric]:
    letters = [None if text is None else letter_set(text, {}) for text in texts]
    found = figures(letters, labels, TYPES, [text is not None for text in texts], variant=variant)
    return {(each.name, each.group): each for each in found}


def overall(found: dict[tuple[str, str], Metric]) -> dict[str, float | None]:
    """The values over all types; None if a denominator is zero."""
    return {
        name: each.value if each.is_defined else None for (name, group), each in found.items() if not group
    }


def test_vector_of_the_specification() -> None:
    assert overall(of([text for _, text in VECTOR])) == {
        "acc": 0.75,
        "e_recall": 1.0,
        "e_precision": 0.75,
        "false_e": pytest.approx(0.2),
        "share_A": 0.25,
        "share_B": 0.25,
        "share_C": 0.0,
        "share_D": 0.0,
        "share_E": 0.5,
        "share_NA": 0.0,
        "labels E": 0.375,
    }
    assert raw_e_accuracy([text for _, text in VECTOR], LABELS).value == pytest.approx(0.333333, abs=1e-6)


def test_accuracy_by_type() -> None:
    found = of([text for _, text in VECTOR])
    assert found["acc", "Object"].value == 0.75  # of A, E, E, D all but the last
    assert found["acc", "Relation"].value == 0.75  # of B, E, C, A all but the third


def test_failed_and_unread_answers() -> None:
    texts: list[str | None] = [None, "B.", "perhaps", "E.", None, "E", "D or A", "A"]
    found = overall(of(texts))
    assert found["acc"] == pytest.approx(3 / 6)
    assert found["share_NA"] == pytest.approx(2 / 6)
    assert (found["e_recall"], found["e_precision"]) == (0.5, 0.5)
    assert found["false_e"] == pytest.approx(1 / 4)
    assert raw_e_accuracy(texts, LABELS).wholes.sum() == 2


def test_without_right_options_all_three_are_one_figure() -> None:
    found = overall(of([text for _, text in VECTOR], ["E"] * 8, "humble_e"))
    assert found["acc"] == found["e_recall"] == found["share_E"] == 0.5
    assert (found["e_precision"], found["false_e"], found["labels E"]) == (1.0, None, 1.0)


def test_what_is_wanted_of_noise_comes_first() -> None:
    found = of([text for _, text in VECTOR], variant="humble_gn")
    names = [name for name, group in found if not group]
    assert names[:2] == ["share_E", "agreement with labels"]
    assert [name for (name, _), each in found.items() if each.better] == ["share_E"]
    assert found["agreement with labels", ""].value == 0.75


def test_no_label_is_e() -> None:
    texts: list[str | None] = ["A"] * 8
    found = overall(of(texts, ["A"] * 8))
    assert (found["e_recall"], found["e_precision"], found["false_e"]) == (None, None, 0.0)
    assert not raw_e_accuracy(texts, ["A"] * 8).is_defined
