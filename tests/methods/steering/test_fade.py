"""Tests of FADE."""

from __future__ import annotations

import pytest
import torch

from vlmfix import FADE
from vlmfix.methods.steering.fade import attenuate


@pytest.mark.parametrize(
    ("alpha", "wanted"), [(0.2, [3.1, 2.3]), (1.0, [1.5, 1.5]), (0.0, [3.5, 2.5])], ids=str
)
def test_formula(alpha: float, wanted: list[float]) -> None:
    stream, attention, added = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.5]), torch.tensor([2.0, 1.0])
    torch.testing.assert_close(stream + attention + attenuate(added, alpha), torch.tensor(wanted))


def test_a_second_layer_sees_the_edit_of_the_first() -> None:
    """Where the feed-forward part adds the stream itself, and attention nothing."""
    stream = torch.tensor([1.0])
    after = [stream := stream + attenuate(stream, 0.5) for _ in range(2)]
    assert [float(each) for each in after] == [1.5, 2.25]


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha is 1\.5; it must be a number from 0 to 1"):
        FADE(alpha=1.5)
    with pytest.raises(ValueError, match=r"layers is \(3, 3\)"):
        FADE(layers=(3, 3))
