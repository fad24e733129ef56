"""CEI: the vectors of its specification, and a model with the same edit by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support import families
from tests.support.methods import values
from tests.support.stream_reference import Edit, answers, each_from
from vlmfix import CEI
from vlmfix.methods.steering.cei import inject
from vlmfix.models.structure import text_decoder


@pytest.mark.parametrize(
    ("match_norm", "wanted"), [(False, [0.92, -1.76, 0.15]), (True, [0.915108, -1.769783, 0.223375])]
)
def test_vectors(match_norm: bool, wanted: list[float]) -> None:
    state, prompt = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[0.2, 0.4, -3.0]])
    mixed = inject(state, prompt, alpha=0.1, match_norm=match_norm)
    torch.testing.assert_close(mixed, torch.tensor([wanted]), atol=1e-6, rtol=0)
    assert torch.equal(inject(state, prompt, alpha=0.0), state)
    assert torch.equal(inject(state, prompt, alpha=1.0), prompt)


@pytest.mark.parametrize("match_norm", [False, True])
@pytest.mark.parametrize(
    ("family", "layer", "edited"), [("llava", None, 2), ("qwen2_5_vl", 4, 4)]
)  # 10 of 32 layers is 2 of 5
def test_model_against_the_edit_by_hand(
    family: str, layer: int | None, edited: int, match_norm: bool, models: dict[str, PreTrainedModel]
) -> None:
    """New rows of one layer alone; the state is read where nothing is edited, also if that is the layer."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 1))

    def edits_of(single: dict[str, Tensor]) -> Mapping[nn.Module, Edit]:
        prompt = model(**single, output_hidden_states=True).hidden_states[-1][0, -1]

        def edit(state: Tensor) -> Tensor:
            scale = state.norm() / prompt.norm() if match_norm else 1.0
            return 0.7 * state + 0.3 * scale * prompt

        length = single["input_ids"].shape[1]
        return {text_decoder(model).layers[edited]: each_from(length - 1, edit)}

    with CEI(alpha=0.3, layer=layer, match_norm=match_norm)(model):
        found = values(model, inputs, max_new_tokens=3)
    wanted = answers(model, family, inputs, edits_of)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, values(model, inputs, max_new_tokens=3), atol=1e-2)


def test_values_out_of_range_are_refused(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match=r"alpha is 1\.5; it must be a number from 0 to 1"):
        CEI(alpha=1.5)
    with pytest.raises(ValueError, match="layer is 9"):
        CEI(layer=9)(models["llava"]).__enter__()
