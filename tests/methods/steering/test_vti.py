"""VTI: the vectors of its specification, and a model with the same edits by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import directions, values
from tests.support.stream_reference import Edit, answers, each_from
from vlmfix import VTI, UnsupportedError, VisionZip
from vlmfix.engine.capabilities import EditsVisionEncoder
from vlmfix.engine.vision_encoder import VisionEncoder
from vlmfix.methods.grammar import make_methods
from vlmfix.methods.steering.base import angle, steer, unit
from vlmfix.methods.steering.vti import direction
from vlmfix.models.directions import write_directions
from vlmfix.models.structure import text_decoder

TOKENS = 17  # 4 x 4 patches and the class token


def file_of(model: PreTrainedModel, folder: Path, *, tokens: int = TOKENS, layers: int = 2) -> str:
    """Random directions for the decoder and the encoder of a random LLaVA."""
    generator = torch.Generator().manual_seed(0)
    path = folder / "directions.safetensors"
    text = torch.randn(families.LAYERS, families.HIDDEN, generator=generator)
    image = torch.randn(layers, tokens, 32, generator=generator)
    write_directions(path, "vti", model.config, {"text": text, "image": image})
    return str(path)


def test_a_state_is_turned() -> None:
    states = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    turned = steer(states, 0.1 * 0.9 * unit(torch.tensor([0.0, 2.0, 0.0])))
    wanted = torch.tensor([[2.987923, 0.448188, 3.983898], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(turned, wanted, atol=1e-6, rtol=0)
    assert float(turned[0].norm()) == pytest.approx(5, abs=1e-6)
    assert float(angle(states, turned)[0]) == pytest.approx(5.142765, abs=1e-3)  # atan(0.09)


def test_directions_are_mean_and_principal_component() -> None:
    differences = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 1.5], [2.0, -1.0, 2.5], [0.5, 0.4, 2.0]])
    wanted = torch.tensor([1.598717, -0.626484, 2.337281])
    torch.testing.assert_close(direction(differences), wanted, atol=1e-5, rtol=0)
    mean = torch.tensor([1.0, 0.1, 2.0])
    component = direction(differences) - mean
    torch.testing.assert_close(component, torch.tensor([0.598717, -0.726484, 0.337281]), atol=1e-5, rtol=0)
    torch.testing.assert_close(direction(torch.stack([differences, -differences]))[1], -wanted)
    equal = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    torch.testing.assert_close(direction(equal), equal[0])  # no component


def slowly(alpha: float, vector: Tensor) -> Edit:
    def edit(state: Tensor) -> Tensor:
        turned = state / state.norm() + 0.1 * alpha * vector / vector.norm()
        return turned / turned.norm() * state.norm()

    return each_from(0, edit)


@pytest.mark.parametrize(("alpha_text", "alpha_image"), [(4.0, 0.0), (0.0, 9.0), (3.0, 6.0)])
def test_model_against_the_edit_by_hand(
    alpha_text: float, alpha_image: float, models: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    """Every row of every decoder layer, every token of every encoder layer."""
    model = models["llava"]
    inputs = families.prompt("llava", model, (1, 1))
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(families.LAYERS, families.HIDDEN, generator=generator)
    image = torch.randn(2, TOKENS, 32, generator=generator)
    encoder, decoder = VisionEncoder(model), text_decoder(model)

    def edits_of(single: dict[str, Tensor]) -> Mapping[nn.Module, Edit]:
        return {
            layer.mlp: slowly(alpha_text, vector) for layer, vector in zip(decoder.layers, text, strict=True)
        } | {part: patchwise(own) for part, own in zip(encoder.feed_forwards, image, strict=True)}

    def patchwise(vectors: Tensor) -> Edit:
        edits = [slowly(alpha_image, vector) for vector in vectors]

        def edited(states: Tensor) -> Tensor:
            return torch.cat([edit(own[None]) for edit, own in zip(edits, states, strict=True)])

        return edited

    method = VTI(alpha_text=alpha_text, alpha_image=alpha_image, directions=file_of(model, tmp_path))
    with method(model):
        found = values(model, inputs, max_new_tokens=3)
    torch.testing.assert_close(found, answers(model, "llava", inputs, edits_of), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, values(model, inputs, max_new_tokens=3), atol=1e-2)
    assert method.edit_stats().layers_edited == (list(range(5)) if alpha_text else [])


def test_the_encoder_is_turned_where_there_are_directions(
    models: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    llava, qwen = models["llava"], models["qwen2_5_vl"]
    with_image, text_alone = file_of(llava, tmp_path), directions("vti", "text")
    assert VTI(directions=with_image).resolve(llava.config, None).alpha_image == 0.9
    assert VTI(directions=text_alone).resolve(llava.config, None).alpha_image == 0
    with pytest.raises(ValueError, match=r"alpha_image is 0\.9, and .* has no directions for the vision"):
        VTI(alpha_image=0.9, directions=text_alone)(qwen).__enter__()
    write_directions(
        tmp_path / "qwen", "vti", qwen.config, {"text": torch.ones(5, 32), "image": torch.ones(2, 17, 32)}
    )
    with pytest.raises(UnsupportedError, match="the vision encoder of qwen2_5_vl is not a CLIP or SigLIP"):
        VTI(directions=str(tmp_path / "qwen"))(qwen).__enter__()
    before = families.fingerprint(llava)
    with pytest.raises(UnsupportedError, match="for a vision encoder of 3 layers, and this one has 2"):
        VTI(directions=file_of(llava, tmp_path, layers=3))(llava).__enter__()
    inputs = families.prompt("llava", llava, (1,))
    with (
        VTI(directions=file_of(llava, tmp_path, tokens=9))(llava),
        pytest.raises(UnsupportedError, match=r"directions for 9 tokens .* and this picture has 17"),
    ):
        values(llava, inputs, max_new_tokens=1)
    assert families.fingerprint(llava) == before


def test_without_strength_and_directions_it_says_so(models: dict[str, PreTrainedModel]) -> None:
    model = models["llava"]
    inputs = families.prompt("llava", model, (1,))
    method = VTI(alpha_text=0, directions=directions("vti", "text"))
    with (
        pytest.warns(vlmfix.InactiveMethodWarning, match="alpha_text is 0, and .* has no directions"),
        method(model),
    ):
        values(model, inputs, max_new_tokens=1)


@dataclass(frozen=True, kw_only=True)
class Blur(vlmfix.Method, EditsVisionEncoder):
    """Another method that changes the encoder."""

    info: ClassVar = vlmfix.MethodInfo(stage="vision", changes="features", where="encoder", forwards=1.0)

    def hook_encoder(self, encoder: VisionEncoder) -> Sequence[RemovableHandle]:
        return [encoder.projector.register_forward_hook(lambda module, args, output: 0.5 * output)]


@pytest.mark.parametrize("other", [Blur(), VisionZip(dominant_tokens=2, contextual_tokens=1)], ids=str)
@pytest.mark.parametrize("is_first", [True, False])
def test_two_methods_on_the_encoder_are_refused(
    other: Any, is_first: bool, models: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    model = models["llava"]
    vti = VTI(directions=file_of(model, tmp_path))
    first, second = (vti, other) if is_first else (other, vti)
    before = families.fingerprint(model)
    with (
        first(model),
        pytest.raises(UnsupportedError, match=r"work on the vision encoder, and one changes it; use one at"),
    ):
        second(model).__enter__()
    assert families.fingerprint(model) == before
    with ExitStack() as stack:  # of the text decoder alone it does not mind
        stack.enter_context(other(model))
        stack.enter_context(VTI(alpha_image=0, directions=directions("vti", "text"))(model))
    with pytest.raises(UnsupportedError, match="use one at a time"):
        make_methods({"vti": {"alpha_image": 0.9}, "visionzip": {}})


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha_text is -1; it must be a number from 0 to 10"):
        VTI(alpha_text=-1)
    with pytest.raises(ValueError, match="directions is ''; it must be the name of a safetensors file"):
        VTI(directions="")
