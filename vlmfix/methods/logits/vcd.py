"""VCD: away from what a noised image would make the model say (arXiv 2311.16922)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.engine.vision_cache import pixels_of, shown_sizes
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import ScaledContrast
from vlmfix.methods.logits.branch_prompts import seeded, shown_images, with_other_images
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, OneOf
from vlmfix.methods.validation import check_whole

STEPS = 1000
_CHANNELS = 3


@register_method("vcd")
@dataclass(frozen=True, kw_only=True)
class VCD(ScaledContrast):
    """Visual Contrastive Decoding (arXiv 2311.16922): away from the same prompt with a noised image.

    The noise is drawn once an image, from the seed and the pixels, so that neither batch nor device matters;
    the frames of a video get noise of their own.
    Papers and scripts differ in the step (500 or 999) and in the strength (0.5 or 1); these are the scripts'.
    `beta` is the default of the released code; its scripts pass 0.2.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        noise_step: of the 1,000 steps of the diffusion, 0 to 999; the higher, the less is left of the image.
        seed: of the noise, 0 or more.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    noise_step: int = 500
    seed: int = 0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits of a noised image",
        where="every step",
        forwards=2.0,
        provenance="released code",
        paper="2311.16922",
    )
    search_space: ClassVar = {"alpha": Between(0.2, 2), "noise_step": OneOf((300, 500, 700, 999))}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("noise_step", self.noise_step, 0, STEPS - 1)
        check_whole("seed", self.seed, 0, 2**31)

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if not self.contrasts or not context.layout.has_image:
            return ()
        images = shown_images(context, "VCD", in_rows=True)
        assert context.config is not None
        noised = []
        for image in images:
            copies = 1
            if "image_grid_thw" in image:  # Qwen-VL repeats an image for the frames of a video
                copies = getattr(context.config.vision_config, "temporal_patch_size", 1)
            in_rows = not any("grid_thw" in name for name in image)  # and not in patches
            others = {
                name: _noised(
                    pixels, self.noise_step, self.seed, copies, shown_sizes(image, name) if in_rows else None
                )
                for name, pixels in pixels_of(image).items()
            }
            noised.append(image | others)
        return [with_other_images(context, noised, inputs_embeds, decoder_inputs, fused=self.fused)]


def _noised(
    pixels: Tensor, step: int, seed: int, copies: int, shown: Sequence[tuple[int, int]] | None
) -> Tensor:
    """Noisy pixels of an image: padding stays, and each of several crops has noise of its own, whatever
    stands beside it in a batch.

    Args:
        shown: height and width of each crop without padding; None: there is none.
    """
    if shown is None:
        return add_noise(pixels, step, seed, copies=copies)
    noisy = pixels.clone()
    for crop, (height, width) in zip(noisy.view(-1, *pixels.shape[-3:]), shown, strict=True):
        crop[..., :height, :width] = add_noise(crop[..., :height, :width], step, seed)
    return noisy


def signal_shares() -> Tensor:
    """How much of the signal is left after each diffusion step, squared (arXiv 2311.16922), `(1000,)`."""
    betas = torch.sigmoid(-6 + 12 * torch.arange(STEPS, dtype=torch.float64) / (STEPS - 1))
    return torch.cumprod(1 - (betas * (0.005 - 1e-5) + 1e-5), dim=0)


def diffuse(pixels: Tensor, noise: Tensor, step: int) -> Tensor:
    """Pixels after `step` + 1 diffusion steps, given standard normal noise of their shape."""
    share = float(signal_shares()[step])
    noisy: Tensor = share**0.5 * pixels + (1 - share) ** 0.5 * noise
    return noisy


def add_noise(pixels: Tensor, step: int, seed: int, *, copies: int = 1) -> Tensor:
    """Noise that depends on the seed and the pixels alone.

    Args:
        pixels: of one image, after normalisation, of any shape.
        step: of the diffusion, 0 to 999.
        seed: of the noise.
        copies: how often a patch `(patches, channels * copies * height * width)` holds the image; each copy
            gets the same noise.
    """
    exact, generator = pixels.detach().float().cpu(), seeded(pixels, seed)
    if copies == 1:
        noise = torch.randn(exact.shape, generator=generator)
    else:
        size = exact.shape[1] // (_CHANNELS * copies)
        noise = torch.randn(len(exact), _CHANNELS, 1, size, generator=generator)
        noise = noise.expand(-1, -1, copies, -1).reshape(exact.shape)
    return diffuse(exact, noise, step).to(pixels)
