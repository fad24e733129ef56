"""What numbers of methods are refused, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from vlmfix.methods.validation import check_temperature, check_token_ids, sequence, shown


@pytest.mark.parametrize("value", [-0.5, 1e-300, float("nan"), float("inf")])
def test_temperatures_that_logits_cannot_be_divided_by(value: float) -> None:
    with pytest.raises(ValueError, match=r"must be 0, or a number of .* or more"):
        check_temperature("temperature", value)


@pytest.mark.parametrize("value", [0, 0.7, 1e30])
def test_temperatures(value: float) -> None:
    check_temperature("temperature", value)


def test_tokens_that_a_model_does_not_have() -> None:
    check_token_ids("yes_ids", None, 10)
    check_token_ids("yes_ids", (0, 9), 10)
    with pytest.raises(ValueError, match="yes_ids has 10; the tokens of this model go from 0 to 9"):
        check_token_ids("yes_ids", (3, 10), 10)


@pytest.mark.parametrize("value", ["12", b"12", {1: 2}, 5, None])
def test_what_is_no_sequence(value: Any) -> None:
    with pytest.raises(ValueError, match="must hold layers"):
        sequence("prune_layers", value, "layers")


def test_sequences() -> None:
    assert sequence("prune_layers", [1, 2], "layers") == (1, 2)
    assert sequence("prune_layers", iter((1, 2)), "layers") == (1, 2)


def test_values_in_messages_are_short() -> None:
    assert shown(0.5) == "0.5"
    assert shown("x" * 200) == "'" + "x" * 96 + "..."
    assert shown(10**5000) == "a number of thousands of digits"
