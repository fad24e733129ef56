"""The zoo: every type of its kind runs, looks at its pictures, and does not mix up the rows of a batch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

import vlmfix
from tests.support import zoo
from tests.support.zoo.shrink import IMAGE_TOKEN

QUICK = ("llava", "qwen2_5_vl")
# Stock models whose rows depend on the rest of the batch.
MIXED = {
    "diffusion_gemma": "starts from a canvas of random tokens",
    "florence2": "positions of its encoder count the padding",
    "hunyuan_vl": "numbers the pictures of a prompt on from those of the prompt before",
}


def names(*, loaded: bool = False) -> list[object]:
    """Types, all but two for `make support`; only those that load again, without variants, if asked for."""
    chosen = [
        name
        for name, kind in zoo.TYPES.items()
        if (kind.base or name) in KNOWN  # older transformers know fewer
        and not (loaded and (kind.base or name in zoo.NO_PROCESSOR or name in zoo.NOT_LOADED))
    ]
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.support) for name in chosen]


@cache
def built(name: str) -> PreTrainedModel:
    return zoo.build(name)


def first_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of the first new token, `[batch, vocabulary]`, with positions as `generate` counts them."""
    copied = {key: value.clone() for key, value in inputs.items()}  # BLIP writes into what it gets
    if model.config.model_type == "diffusion_gemma":
        return model(**copied).logits[:, -1]
    output = model.generate(
        **copied, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return output.logits[0]


def other_pictures(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The negatives; numbers of rows and columns in front of flattened patches stay."""
    changed = dict(inputs)
    for key, value in inputs.items():
        if not value.is_floating_point() or "mask" in key:
            continue
        kept = 2 if key == "flattened_patches" else 0
        changed[key] = torch.cat([value[..., :kept], -value[..., kept:]], dim=-1)
    return changed


def test_every_type_is_built_or_said_why_not() -> None:
    variants = {name for name, kind in zoo.TYPES.items() if kind.base}
    assert zoo.TYPES.keys() - variants | zoo.UNBUILT.keys() >= KNOWN.keys()
    assert not zoo.TYPES.keys() & zoo.UNBUILT.keys()
    assert {kind.base for kind in zoo.TYPES.values() if kind.base} <= zoo.TYPES.keys()


@pytest.mark.parametrize("name", names())
@torch.no_grad()
def test_a_type_runs(name: str) -> None:
    model = built(name)
    assert model.dtype == torch.float32
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) < 3e6
    inputs = zoo.prompt(name, model, (1, 1) if zoo.TYPES[name].one_image else (1, 2))
    singles = zoo.split(name, model, inputs)
    together = first_logits(model, inputs)
    assert together.isfinite().all()
    if name not in MIXED:
        alone = torch.cat([first_logits(model, single) for single in singles])
        torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)
    changed = first_logits(model, other_pictures(inputs))
    assert (changed - together).abs().amax(dim=-1).min() > 1e-2, "the picture does not matter"
    if name not in zoo.ALWAYS_PICTURES:
        text = zoo.without_images(name, model, inputs)
        assert not (text["input_ids"] == IMAGE_TOKEN).any()
        first_logits(model, text)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False) is not None


@pytest.mark.support
def test_pictures_of_a_batch_differ_in_tokens() -> None:
    alike = {"llava", "gemma3", "paligemma"}
    for name in (
        "llava",
        "gemma3",
        "paligemma",
        "llava_next",
        "qwen2_5_vl",
        "internvl",
        "mistral3",
        "lfm2_vl",
    ):
        model = built(name)
        counts = (zoo.prompt(name, model, (1, 1, 1))["input_ids"] == IMAGE_TOKEN).sum(dim=1)
        assert (len(counts.unique()) == 1) == (name in alike)


@pytest.mark.parametrize("name", names(loaded=True))
@torch.no_grad()
def test_a_checkpoint_loads(name: str, tmp_path: Path) -> None:
    stock = zoo.processor(name)
    assert stock is not None
    built(name).save_pretrained(tmp_path)
    stock.save_pretrained(tmp_path)
    model, processor = vlmfix.load(tmp_path)
    recipe = zoo.TYPES[name].recipe
    picture = Image.new("RGB", (84, 56), "red")
    text = {"text": [f"w7 {recipe.item or recipe.image} w9"]} if recipe.image else {}
    inputs = processor(
        images=[[picture]] if recipe.nested else [picture], return_tensors="pt", **text, **recipe.call
    )
    inputs.pop("labels", None)
    if name not in MIXED:
        torch.testing.assert_close(first_logits(model, inputs), first_logits(built(name), inputs))
