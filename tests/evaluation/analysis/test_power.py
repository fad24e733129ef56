"""How many images a comparison needs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import outcomes
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.analysis.power import POINTS, images_needed, plan


@pytest.mark.parametrize(
    ("discordant", "difference", "images"),
    [(0.05, 0.01, 3923), (0.05, 0.02, 979), (0.10, 0.02, 1960), (0.25, 0.02, 4904), (0.35, 0.05, 1097)],
)
def test_the_table_of_the_specification(discordant: float, difference: float, images: int) -> None:
    """Its formula takes the smaller error under the difference into account: less than 1 % here."""
    error = np.sqrt(discordant / 100)  # of a pilot of 100 images without a difference
    assert images_needed(error, 100, difference) == pytest.approx(images, rel=0.01)


def test_a_pilot() -> None:
    [comparison] = compare([outcomes.captions(images=60), outcomes.captions("careful", care=0.9, images=60)])
    first, careful = comparison.rows
    assert plan(first, "CHAIRi") is None
    found = plan(careful, "CHAIRi")
    assert found is not None
    figure = careful.figure("CHAIRi")
    assert figure is not None
    assert figure.difference is not None
    assert (found.images, found.error) == (60, figure.difference.error)
    assert list(found.needed) == sorted(found.needed, reverse=True)
    assert found.least == pytest.approx((1.959964 + 0.841621) * found.error, rel=1e-6)
    assert found.needed[1] == pytest.approx(60 * (found.least / POINTS[1]) ** 2, abs=1)


def test_questions_that_one_has_right() -> None:
    [comparison] = compare([outcomes.yes_no(), outcomes.yes_no("var", yes_bias=0.9)])
    found = plan(comparison.rows[1], "accuracy")
    assert found is not None
    assert found.discordant is not None
    assert 0 < found.discordant < 1
