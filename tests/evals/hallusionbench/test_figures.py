"""HallusionBench: the vector of the specification, units that are incomplete, and groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
from vlmfix.evals.hallusionbench.dataset import item_samples
from vlmfix.evals.hallusionbench.figures import figures, is_right
from vlmfix.evals.hallusionbench.items import read_items

from tests.support.hallusionbench import vector
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.files.readers import Record
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import load_protocol

# In the order of ids, which is that of the vector.
RIGHT = [True, False, True, True, True, True]
PROTOCOL = load_protocol("hallusionbench.parse_all")


def samples(**more: list[str]) -> list[Sample]:
    return item_samples(read_items(Record(each, "here") for each in vector(**more)), PROTOCOL)


def values(metrics: list[Metric], group: str = "") -> dict[str, float | None]:
    """The value of each metric of a group; None if a denominator is zero."""
    return {each.name: each.value if each.is_defined else None for each in metrics if each.group == group}


def test_vector_of_the_specification() -> None:
    assert values(figures(samples(), RIGHT)) == {
        "aAcc": pytest.approx(0.833333, abs=1e-6),
        "fAcc": pytest.approx(0.666667, abs=1e-6),  # figure 0 of VD fails, figure 0 of VS is skipped
        "qAcc": pytest.approx(0.666667, abs=1e-6),
        "easy": pytest.approx(2 / 3),
        "hard": 1.0,
        "figures mixed": pytest.approx(1 / 3),
        "figures wrong": 0.0,
    }


def test_by_category() -> None:
    found = figures(samples(), RIGHT)
    assert list(dict.fromkeys(each.group for each in found)) == ["", "VD", "VS"]
    assert values(found, "VD") == {
        "aAcc": 0.75,
        "fAcc": 0.5,
        "qAcc": 0.5,
        "easy": 0.5,
        "hard": 1.0,
        "figures mixed": 0.5,
        "figures wrong": 0.0,
    }
    assert values(found, "VS")["hard"] is None  # it has no edited figure


def test_by_subcategory() -> None:
    found = figures(samples(subcategory=["map", "map", "map", "map", "ocr", "ocr"]), RIGHT)
    assert list(dict.fromkeys(each.group for each in found)) == ["", "VD", "VS", "map", "ocr"]
    assert values(found, "map") == values(found, "VD")


def test_a_figure_that_is_wrong_throughout() -> None:
    found = values(figures(samples(), [False, False, True, False, False, True]))
    assert (found["fAcc"], found["figures mixed"], found["figures wrong"]) == pytest.approx((1 / 3,) * 3)
    assert (found["qAcc"], found["easy"], found["hard"]) == (0, 0, 0.5)


@pytest.mark.parametrize("place", range(6))
def test_units_with_a_failed_sample_are_left_out(place: int) -> None:
    right: list[bool | None] = [*RIGHT]
    right[place] = None
    found = {each.name: each.wholes.sum() for each in figures(samples(), right) if not each.group}
    assert found["aAcc"] == 5
    assert found["fAcc"] == found["figures mixed"] == (3 if place == 4 else 2)  # figure 0 of VS is in none
    assert found["qAcc"] == 2
    assert (found["easy"], found["hard"]) == ((3, 1) if place in (2, 3) else (2, 2))


def test_units_of_which_only_a_part_is_asked_are_left_out() -> None:
    asked = samples()[1:]
    found = {each.name: each.wholes.sum() for each in figures(asked, RIGHT[1:]) if not each.group}
    assert (found["aAcc"], found["fAcc"], found["qAcc"], found["easy"], found["hard"]) == (5, 2, 2, 2, 2)


def test_repeats_are_units_of_their_own() -> None:
    asked = [sample for sample in samples() for _ in range(2)]
    right = [each for one in RIGHT for each in (one, True)]
    found = values(figures(asked, right))
    assert found["aAcc"] == pytest.approx(11 / 12)
    assert found["fAcc"] == found["qAcc"] == pytest.approx(5 / 6)


def test_nothing_answered() -> None:
    assert set(values(figures(samples(), [None] * 6)).values()) == {None}


@pytest.mark.parametrize(
    ("verdict", "allowed", "expected"),
    [
        ("yes", False, True),
        ("no", False, False),
        ("no", True, False),
        (None, False, False),
        (None, True, True),
    ],
)
def test_unclear_answers(verdict: str | None, allowed: bool, expected: bool) -> None:
    assert is_right(verdict, "yes", unclear_allowed=allowed) is expected  # type: ignore[arg-type]


def test_terms_stand_on_the_first_sample_of_a_unit() -> None:
    shuffled = [replace(sample) for sample in samples()[::-1]]
    [metric] = [each for each in figures(shuffled, RIGHT[::-1]) if (each.name, each.group) == ("fAcc", "")]
    assert metric.wholes.tolist() == [[1, 0, 1, 0, 1, 0]]
    assert metric.parts.tolist() == [[1, 0, 1, 0, 0, 0]]
