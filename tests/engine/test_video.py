"""Methods on videos, alone and beside images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import ATTACHED, acting, attached, plain, values
from tests.support.methods import REFUSED as REFUSED_FAMILIES
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.engine.vision_attention import EncoderTap
from vlmfix.methods.logits.branch_prompts import unchanged

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")

FAMILIES = [name for name, family in families.FAMILIES.items() if family.videos]
REFUSED = {"ritual": "transforms pictures, and a prompt holds a video"}
FRAMES_DO_NOT_COUNT = ("visual_entropy",)
TOKENS = 3


@pytest.mark.parametrize(
    ("name", "family"),
    sorted({*zip(ATTACHED, cycle(FAMILIES))} - REFUSED_FAMILIES),
)
def test_acts_on_videos_or_says_why_not(name: str, family: str, model: PreTrainedModel) -> None:
    """Prompts about a video, a video and an image, and nothing; a batch equals its samples."""
    inputs = families.prompt(family, model, (0, 1, 0), videos=(1, 1, 0))
    if name in REFUSED:
        with attached(name, model), pytest.raises(vlmfix.UnsupportedError, match=REFUSED[name]):
            values(model, inputs, max_new_tokens=TOKENS)
        return
    stock = values(model, inputs, max_new_tokens=TOKENS, **plain(name))
    method = acting(name)
    with method(model, families.PROCESSOR):
        edited = values(model, inputs, max_new_tokens=TOKENS)
        for row, single in enumerate(families.split(family, model, inputs)):
            alone = values(model, single, max_new_tokens=TOKENS)[:, 0]
            torch.testing.assert_close(edited[:, row], alone, atol=1e-4, rtol=1e-4)
    moved = (edited - stock).abs().nan_to_num(nan=0.0).amax(dim=(0, 2))
    skipped = {"no_image": 2} if method.needs_image else {}
    if name in FRAMES_DO_NOT_COUNT:
        assert moved[0] < 1e-4
        moved, skipped = moved[1:], skipped | {"fewer than two image tokens": 2}
    assert (moved[:-1] > 1e-3).all()
    assert method.edit_stats().steps_edited > 0
    assert method.edit_stats().rows_skipped == skipped


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_behind_a_video(kind: str, fused: bool, models: dict[str, PreTrainedModel]) -> None:
    """What follows counts from the last token, however far the times of the frames lie after it."""
    model = models[kind]
    inputs = families.prompt(kind, model, (0, 1), videos=(1, 0))
    seen: list[tuple[Tensor, Tensor]] = []

    class Same(vlmfix.VCD):
        def branches(
            self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
        ) -> Sequence[Branch]:
            return [unchanged(context, inputs_embeds, decoder_inputs, fused=self.fused)]

        def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
            seen.append((logits, branches[0]))
            return logits

    kwargs: dict[str, Any] = {"do_sample": False, "max_new_tokens": TOKENS, "return_dict_in_generate": True}
    stock = model.generate(**inputs, output_logits=True, **kwargs).logits
    with Same(fused=fused, beta=0)(model):
        model.generate(**inputs, **kwargs)
    for (logits, branch), expected in zip(seen, stock, strict=True):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(branch, expected, atol=1e-4, rtol=1e-4)


def test_positions_after_pruning_a_video(models: dict[str, PreTrainedModel]) -> None:
    """Tokens that leave change no position: as if their keys were masked, also after the times of frames."""
    model = models["qwen2_5_vl"]
    inputs = families.prompt("qwen2_5_vl", model, (0,), videos=(1,))
    positions: list[Tensor] = []

    def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    handle = model.get_decoder().rotary_emb.register_forward_pre_hook(see, with_kwargs=True)
    kwargs: dict[str, Any] = {"do_sample": False, "max_new_tokens": TOKENS}
    model.generate(**inputs, **kwargs)
    assert positions[0].max() > positions[-1].max()  # or the largest would do as well as the last
    stock = [each[..., -1:].flatten().tolist() for each in positions]
    positions.clear()
    with vlmfix.DivPrune(keep_ratio=0.3)(model):
        model.generate(**inputs, **kwargs)
    handle.remove()
    assert [each[..., -1:].flatten().tolist() for each in positions] == stock


@pytest.mark.parametrize("decoding", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_logits_processor_on_videos(decoding: dict[str, Any], models: dict[str, PreTrainedModel]) -> None:
    model = models["qwen2_5_vl"]
    inputs = families.prompt("qwen2_5_vl", model, (1, 0), videos=(1, 1))
    kwargs = {"do_sample": False, "max_new_tokens": 8, **decoding}
    processors = vlmfix.VCD().logits_processor(model, inputs)
    beside = model.generate(**inputs, **kwargs, logits_processor=processors)
    with vlmfix.VCD()(model):
        assert torch.equal(model.generate(**inputs, **kwargs), beside)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_the_encoder_is_seen_frame_by_frame(kind: str, models: dict[str, PreTrainedModel]) -> None:
    """Also when a method beside shows it other pixels."""
    model = models[kind]
    inputs = families.prompt(kind, model, (1, 1), videos=(1, 0))
    zip_alone = vlmfix.VisionZip(dominant_tokens=1, contextual_tokens=1)
    with zip_alone(model):
        alone = values(model, inputs, max_new_tokens=TOKENS)
    assert zip_alone.edit_stats().details["image tokens"] == (2 * 4 + 4 + 6) / 2
    assert zip_alone.edit_stats().size == (2 * 2 + 2 + 2) / 2  # two of each frame and image, from layer 0 on
    with zip_alone(model), vlmfix.VCD(alpha=0, beta=1e-9)(model):
        torch.testing.assert_close(values(model, inputs, max_new_tokens=TOKENS), alone)
    tap = EncoderTap(model)
    before = families.fingerprint(model)
    tap.install()
    with torch.no_grad():
        model(**inputs)
    assert [each.count for each in tap.videos] == [4, 4]
    assert [each.count for each in tap.images] == [4, 6]
    tap.remove()
    assert families.fingerprint(model) == before
