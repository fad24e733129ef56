"""Nullu: the vectors of its specification, and a model with edited weights, as in the paper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from tests.support.methods import directions, values
from vlmfix import Nullu
from vlmfix.methods.steering.nullu import difference_subspace, remove_subspace
from vlmfix.models.directions import read_directions
from vlmfix.models.structure import text_decoder

DIFFERENCES = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.1, 0.0], [1.5, 0.0, 0.2]])
WEIGHTS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def test_vectors() -> None:
    singular = torch.linalg.svdvals(DIFFERENCES)
    torch.testing.assert_close(singular, torch.tensor([2.695916, 0.173827, 0.042678]), atol=1e-5, rtol=0)
    [first] = found = difference_subspace(DIFFERENCES, 1)
    wanted = torch.tensor([0.998761, 0.027522, 0.041454])
    torch.testing.assert_close(first * first[0].sign(), wanted, atol=1e-6, rtol=0)
    edited = remove_subspace(WEIGHTS.T, found.T).T  # each column is what one neuron writes
    wanted = torch.tensor([[-0.287001, -0.353415], [2.964535, 3.935149], [4.946582, 5.902320]])
    torch.testing.assert_close(edited, wanted, atol=1e-5, rtol=0)
    assert (first @ edited).abs().max() < 1e-5


def test_differences_are_not_centred_and_the_subspace_is_orthonormal() -> None:
    same = torch.tensor([[0.0, 2.0, 0.0]] * 3)
    assert float(difference_subspace(same, 1)[0, 1].abs()) == pytest.approx(1)
    many = difference_subspace(torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), 4)
    torch.testing.assert_close(many @ many.T, torch.eye(4), atol=1e-6, rtol=0)


@contextmanager
def edited_weights(model: PreTrainedModel, subspaces: Tensor, layers: range, rank: int) -> Iterator[None]:
    """Within the block the output projections of feed-forward parts write nothing into the subspaces."""
    weights = [text_decoder(model).layers[layer].mlp.down_proj.weight for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            for row in subspaces[layer, :rank]:
                weight -= torch.outer(row, row @ weight)
        yield
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)


@pytest.mark.parametrize(
    ("family", "given", "rank", "layers"),
    [("llava", (1, 4), 4, range(1, 4)), ("qwen2_5_vl", None, 2, range(2, 5))],  # 16 to 31 of 32
)
def test_it_gives_what_edited_weights_give(
    family: str, given: tuple[int, int] | None, rank: int, layers: range
) -> None:
    """In all rows, those of a prompt without an image, too."""
    model = families.build(family)
    inputs = families.prompt(family, model, (2, 0))
    file = directions("nullu", "subspaces", 4)
    subspaces = read_directions(file, "nullu", model.config)["subspaces"]
    fingerprint = families.fingerprint(model)
    method = Nullu(rank=rank, layers=given, directions=file)
    with method(model):
        found = values(model, inputs, max_new_tokens=3)
    assert families.fingerprint(model) == fingerprint
    with edited_weights(model, subspaces, layers, rank):
        wanted = values(model, inputs, max_new_tokens=3)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(found, values(model, inputs, max_new_tokens=3), atol=1e-2)
    stats = method.edit_stats()
    assert stats.layers_edited == list(layers)
    assert stats.size is not None
    assert 0 < stats.size < 1  # about rank / hidden size of random directions
    with pytest.raises(RuntimeError, match="on purpose"), method(model):
        raise RuntimeError("on purpose")
    assert torch.equal(
        values(model, inputs, max_new_tokens=1), values(families.build(family), inputs, max_new_tokens=1)
    )


def test_values_that_do_not_fit_are_refused(models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    config, file = models["llava"].config, directions("nullu", "subspaces", 4)
    with pytest.raises(ValueError, match="rank is 17; it must be a whole number from 0 to 16"):
        Nullu(rank=17)
    with pytest.raises(ValueError, match=r"rank is 5, and .* has subspaces of 4 dimensions; use up to 4"):
        Nullu(rank=5, directions=file).resolve(config, None)
    with pytest.raises(
        ValueError, match="no directions are known for this checkpoint; find them with 'vlmfix"
    ):
        Nullu().resolve(config, None)
    with pytest.raises(ValueError, match="directions is 3; it must be the name of a safetensors file"):
        Nullu(directions=3)  # type: ignore[arg-type]
    assert Nullu(rank=0, directions=str(tmp_path / "none")).is_identity
