"""One prompt that a method cannot take: it is left as it is, and the others of its batch are edited."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import ACTING

NO_TEXT, ENDS = "nothing but an image in the prompt", "no text after the image"
AGAINST_TEXT = ("m3id", "lcd", "vdd", "crops", "baseline.text_contrast", "vhr", "pai", "vista")
PRUNING = (
    *(
        "adaptinfer",
        "cdpruner",
        "divprune",
        "dyvte",
        "fastv",
        "kmeans",
        "mmtok",
        "prunesid",
        "pyramid_drop",
        "random_tokens",
        "similarity_filter",
        "uniform_grid",
        "visionzip",
    ),
    *("sparsevlm", "sparsevlm 1.0", "sparsevlm 2.0"),
)
# Reasons of the prompts that hold an image alone, end with one, and have no image, by method.
REASONS = {
    **dict.fromkeys(AGAINST_TEXT, (NO_TEXT, "", "no_image")),
    **dict.fromkeys(PRUNING, (ENDS, ENDS, "no_image")),
    "gift": ("no question", "no question after the image", "no_image"),
}
MORE: dict[str, dict[str, Any]] = {
    "pai": {"gamma": 1.3},
    "sparsevlm 1.0": {"version": "1.0", "kept_tokens": None, "budget": 64},
    "sparsevlm 2.0": {"version": "2.0", "gravity_heads": 2},
}


def prompts(family: str, model: PreTrainedModel) -> tuple[list[list[int]], dict[str, Tensor]]:
    """Ids of a plain prompt and of those that methods decline, and the image that all but the last have."""
    inputs = families.prompt(family, model)
    ids = inputs["input_ids"][0].tolist()
    image = [families.IMAGE_TOKEN] * ids.count(families.IMAGE_TOKEN)
    pixels = {name: inputs[name] for name in families.IMAGE_INPUTS if name in inputs}
    return [ids, image, [1, 20, 21, 22, *image], [1, 30, 31]], pixels


def batch(family: str, rows: list[list[int]], pixels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of these prompts, each with the same image if it has one."""
    length = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[0] * (length - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in rows]),
    }
    images = sum(families.IMAGE_TOKEN in ids for ids in rows)
    if images:
        inputs |= {name: torch.cat([value] * images) for name, value in pixels.items()}
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == families.IMAGE_TOKEN).int()
    return inputs


def logits(model: PreTrainedModel, inputs: dict[str, Tensor], method: vlmfix.Method | None = None) -> Tensor:
    """Raw logits of two steps, `(batch, steps, vocabulary)`."""
    asked = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    if method is None:
        return torch.stack(model.generate(**inputs, **asked).logits, dim=1)
    with method(model, families.PROCESSOR):
        return torch.stack(model.generate(**inputs, **asked).logits, dim=1)


def same(got: Tensor, expected: Tensor) -> bool:
    got, expected = (each.masked_fill(each == -torch.inf, -1e4) for each in (got, expected))
    return torch.allclose(got, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")
@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "llava") for name in REASONS),
        ("gift", "qwen3_vl"),
        ("vdd", "qwen3_vl"),
        ("kmeans", "qwen3_vl"),
    ],
)
def test_prompts_that_a_method_declines(name: str, family: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    rows, pixels = prompts(family, model)
    kind = name.split()[0]
    method = vlmfix.make_method(kind, **(ACTING.get(kind, {}) | MORE.get(name, {})))
    together = logits(model, batch(family, rows, pixels), method)
    assert [row.skipped for row in method.latest_edit_stats()] == ["", *REASONS[name]]
    for row, (ids, reason) in enumerate(zip(rows, ("", *REASONS[name]), strict=True)):
        alone = batch(family, [ids], pixels)
        assert same(together[row], logits(model, alone, method)[0]), row
        assert same(together[row], logits(model, alone)[0]) == bool(reason), row


def test_the_warning_has_the_true_reason(llava: PreTrainedModel) -> None:
    rows, pixels = prompts("llava", llava)
    for method, row, reason in (
        (vlmfix.FastV(), 2, ENDS),
        (vlmfix.LCD(), 1, NO_TEXT),
        (vlmfix.GIFT(saliency_layer=2, enhanced_layers=(1, 3)), 2, "no question after the image"),
    ):
        with pytest.warns(vlmfix.InactiveMethodWarning, match=f"edited 0 of 0 sites .*: {reason}$"):
            logits(llava, batch("llava", [rows[row]], pixels), method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits(llava, batch("llava", rows[:3], pixels), vlmfix.LCD(beta=0.001))
