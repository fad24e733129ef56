"""Tests of what methods keep of two runs that go on as one."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from vlmfix.engine.layout import Rows
from vlmfix.engine.rows_of_state import joined, joined_by_row, of_rows

BATCHES = (2, 3)


class Pair(NamedTuple):
    one: torch.Tensor
    two: float


def test_rows_of_both_runs_come_one_after_the_other() -> None:
    first, second = torch.arange(4.0).view(2, 2), torch.arange(6.0).view(3, 2)
    both = torch.cat([first, second])
    assert torch.equal(joined(first, second, BATCHES), both)
    found = joined({"a": (Pair(first, 0.5), [first])}, {"a": (Pair(second, 0.5), [second])}, BATCHES)
    assert torch.equal(found["a"][0].one, both)
    assert found["a"][0].two == 0.5
    assert torch.equal(found["a"][1][0], both)
    index = torch.tensor([1, 4])
    rows = joined(Rows(index, first > 1), Rows(index.clone(), second > 1), BATCHES)
    assert torch.equal(rows.mask, both > 1)
    assert torch.equal(of_rows(both, slice(2, None), 5), second)


def test_what_is_one_for_all_stays_one() -> None:
    factors = torch.tensor([[0.5, 2.0]])
    assert joined(factors, factors.clone(), BATCHES) is factors
    assert joined(torch.tensor(2.0), torch.tensor(2.0), BATCHES).ndim == 0
    assert joined("low", "low", BATCHES) == "low"
    shared = object()
    assert joined(shared, shared, BATCHES) is shared
    # A run of one sequence has it, too, and its rows are its own.
    assert torch.equal(joined(factors, 2 * factors, (1, 1)), torch.cat([factors, 2 * factors]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(1, 2), torch.zeros(1, 2)),  # counted over all
        (torch.ones(()), torch.zeros(())),
        (torch.ones(2, 4), torch.ones(3, 5)),  # prompts of other lengths
        (torch.ones(2, 4), torch.ones(3)),
        (torch.ones(2), 1.0),
        (Rows(torch.tensor([1]), torch.ones(2, 1) > 0), Rows(torch.tensor([2]), torch.ones(3, 1) > 0)),
        ({"a": 1}, {"b": 1}),
        ([1, 2], [1, 2, 3]),
        (1, 2),
        (object(), object()),
    ],
)
def test_what_does_not_go_together_is_told(first: Any, second: Any) -> None:
    with pytest.raises(ValueError, match=r"keep|join"):
        joined(first, second, BATCHES)


def test_values_by_row_in_another_dimension() -> None:
    first, second = torch.zeros(3, 2, 7), torch.ones(3, 3, 7)
    assert joined_by_row(None, None, BATCHES) is None
    assert torch.equal(joined_by_row(first, second, BATCHES, -2), torch.cat([first, second], dim=1))  # type: ignore[arg-type]
    one = joined_by_row(torch.zeros(1, 7), torch.ones(3, 7), BATCHES)
    assert one is not None
    assert one.sum(dim=1).tolist() == [0, 0, 7, 7, 7]
    with pytest.raises(ValueError, match="do not join"):
        joined_by_row(first, second[..., 1:], BATCHES, -2)
    with pytest.raises(ValueError, match="keeps nothing"):
        joined_by_row(first, None, BATCHES)
