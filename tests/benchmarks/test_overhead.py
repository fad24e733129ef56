"""The speed program measures methods that act, and prints a ratio for each."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel
from typer.testing import CliRunner

import vlmfix
from benchmarks import overhead
from tests.support.methods import values
from vlmfix.engine.capabilities import ChoosesTokens

pytestmark = pytest.mark.slow

TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(overhead.SIZES, "tiny", TINY)


NAMES = [
    name for name, cls in vlmfix.list_methods().items() if cls.attaches and not issubclass(cls, ChoosesTokens)
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(overhead.SIZES, "tiny", TINY)
        return overhead.random_llava("tiny", device="cpu", dtype=torch.float32, kernel="sdpa")


@pytest.fixture(scope="module")
def read(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Prompts, and what the stock model makes of them."""
    inputs = overhead.random_inputs(model, 1, images=1)
    return inputs, values(model, inputs, max_new_tokens=2)


@pytest.mark.parametrize("name", NAMES)
def test_measured_methods_act(
    name: str, model: PreTrainedModel, read: tuple[dict[str, torch.Tensor], torch.Tensor]
) -> None:
    inputs, stock = read
    with overhead.acting(name, "tiny")(model, overhead.Processor()):
        assert not torch.equal(values(model, inputs, max_new_tokens=2), stock)


def test_table_has_a_row_for_every_method_that_is_asked_for() -> None:
    import typer

    app = typer.Typer()
    app.command()(overhead.main)
    asked = NAMES[::8]
    options = [option for name in asked for option in ("--method", name)]
    result = CliRunner().invoke(app, ["--size", "tiny", "--tokens", "2", "--rounds", "1", *options])
    assert result.exit_code == 0, result.output
    assert "decode ratio" in result.output
    for name in ("greedy", *asked):
        assert name in result.output
