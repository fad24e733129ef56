"""RITUAL: what the model says of a transformed image counts, too (arXiv 2405.17821)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.engine.vision_cache import pixels_of
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import Contrastive, finite
from vlmfix.methods.logits.branch_prompts import seeded, shown_images, with_other_images
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range, check_whole
from vlmfix.models.pixels import PixelForm

Transform = Callable[[Image.Image], Image.Image]

# Pixels along the side of the window over which `blur` takes means.
_WINDOW = 13

# Steps of the colour circle in Pillow.
_HUES = 255

# Tries to find a crop that fits before the whole picture is taken.
_TRIES = 10


@register_method("ritual")
@dataclass(frozen=True, kw_only=True)
class RITUAL(Contrastive):
    """Random Image Transformations as a Universal Anti-hallucination Lever (arXiv 2405.17821): the logits of
    the same prompt with a transformed image are added.

    One of six transforms is drawn once an image, from the seed and the pixels, so that neither batch nor
    device matters: a flip, either way; a rotation by any angle; jitter of the colours; blur; a crop, resized.
    It acts on what the image processor made of the image, in that resolution; where this is several crops, on
    each of them alike. The sum has 1 + kappa times the scale of logits, so that sampling is colder by this.

    Args:
        kappa: weight of the added logits, in [0, 100]; 0 leaves only the cut.
        seed: of the draws, 0 or more.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    kappa: float = 3.0
    seed: int = 0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="the logits of a transformed image are added",
        where="every step",
        forwards=2.0,
        provenance="released code",
        paper="2405.17821",
        decoding="greedy, sampling, beams, batches, with the processor",
    )
    identity_parameters: ClassVar = {"kappa": 0, "beta": 0}
    search_space: ClassVar = {"kappa": Between(0.5, 5)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("kappa", self.kappa, 0, 100)
        check_whole("seed", self.seed, 0, 2**31)

    @property
    def needs_processor(self) -> bool:
        return self.kappa > 0

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if self.kappa == 0 or not context.layout.has_image:
            return ()
        if context.has_video:
            raise UnsupportedError(
                "RITUAL transforms pictures, and a prompt holds a video, for which it is not defined; show "
                "frames as images, or use VCD"
            )
        assert context.config is not None
        form = PixelForm.of(getattr(context.processor, "image_processor", None), context.config)
        transformed = []
        shown = shown_images(context, "RITUAL")
        if any(len(pixels_of(part)) > 1 for part in shown):
            names = ", ".join(pixels_of(shown[0]))
            raise UnsupportedError(
                f"RITUAL transforms a picture, and this model reads {names} of each; use VCD"
            )
        for parts in _parts_of_images(context, shown):
            pixels = torch.cat([part["pixel_values"] for part in parts])
            pictures = [form.pictures(part) for part in parts]
            transform = draw_transform(seeded(pixels, self.seed), *pictures[0][0].size)
            for part, crops in zip(parts, pictures, strict=True):
                changed = form.pixels([transform(crop) for crop in crops], part)
                transformed.append({**part, "pixel_values": changed})
        return [with_other_images(context, transformed, inputs_embeds, decoder_inputs, fused=self.fused)]

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return add(logits, branches[0], self.kappa) if branches else logits


def add(logits: Tensor, branch: Tensor, kappa: float) -> Tensor:
    """`logits + kappa * branch` (arXiv 2405.17821).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: in the same form; infinite ones count as the smallest finite one of their row.
        kappa: 0 or more.
    """
    return logits + kappa * finite(branch)


def _parts_of_images(context: DecodeContext, parts: list[dict[str, Tensor]]) -> list[list[dict[str, Tensor]]]:
    """The parts of each image: InternVL lists its crops as if they were images."""
    images = [image for prompt in context.images[:: context.copies] for image in prompt]
    counts = [1] * len(images) if len(images) == len(parts) else [len(image.grids) for image in images]
    if sum(counts) != len(parts):
        raise UnsupportedError(
            f"RITUAL transforms each image, and the pixels of {len(images)} images come in {len(parts)} "
            "parts; show one image a prompt, or use VCD"
        )
    left = iter(parts)
    return [[next(left) for _ in range(count)] for count in counts]


def draw_transform(generator: torch.Generator, width: int, height: int) -> Transform:
    """One of the six transforms, with its numbers.

    Args:
        generator: source of randomness.
        width: of the pictures that are to be transformed, in pixels.
        height: likewise.
    """

    def uniform(low: float, high: float) -> float:
        return float(torch.empty(()).uniform_(low, high, generator=generator))

    kind = int(torch.randint(6, (), generator=generator))
    if kind == 0:
        return ImageOps.mirror
    if kind == 1:
        return ImageOps.flip
    if kind == 2:
        return functools.partial(rotate, degrees=uniform(-180, 180))
    if kind == 3:
        factors = [uniform(0, 2) for _ in range(3)]
        return functools.partial(
            jitter, brightness=factors[0], contrast=factors[1], saturation=factors[2], hue=uniform(-0.5, 0.5)
        )
    if kind == 4:
        return functools.partial(blur, sigma=uniform(1.5, 2))
    return functools.partial(crop, box=_draw_box(uniform, width, height))


def _draw_box(uniform: Callable[[float, float], float], width: int, height: int) -> tuple[int, int, int, int]:
    """A box of 8 to 100 % of the area whose sides are as 3 to 4 to 4 to 3; the whole picture if none fits."""
    for _ in range(_TRIES):
        area = width * height * uniform(0.08, 1)
        ratio = math.exp(uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = (int(uniform(0, room + 1)) for room in (width - across, height - down))
            return left, top, left + across, top + down
    return 0, 0, width, height


def rotate(picture: Image.Image, degrees: float) -> Image.Image:
    """Turned about its centre against the clock, in its size; what comes in at the corners is black."""
    return picture.rotate(degrees)


def jitter(
    picture: Image.Image, brightness: float, contrast: float, saturation: float, hue: float
) -> Image.Image:
    """Colours changed, in the order of the arguments.

    Args:
        picture: in RGB.
        brightness: factor on the levels.
        contrast: factor on their distance from the mean grey.
        saturation: factor on their distance from grey.
        hue: what is added to the hue, in turns of the colour circle.
    """
    for change, factor in (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    ):
        picture = change(picture).enhance(factor)
    turned, *others = picture.convert("HSV").split()
    shift = round(_HUES * hue)
    turned = turned.point(lambda level: (level + shift) % _HUES)
    return Image.merge("HSV", (turned, *others)).convert("RGB")


def blur(picture: Image.Image, sigma: float) -> Image.Image:
    """Gaussian means over 13 pixels each way, mirrored at the edges.

    Args:
        picture: in RGB.
        sigma: standard deviation in pixels.
    """
    reach = _WINDOW // 2
    shares = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    shares /= shares.sum()
    levels = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[:, None].float()
    wide = nn.functional.pad(levels, (reach,) * 4, mode="reflect")
    means = nn.functional.conv2d(wide, shares[None, None, :, None])
    means = nn.functional.conv2d(means, shares[None, None, None, :])
    return Image.fromarray(means[:, 0].round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def crop(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The part in a box (left, top, right, bottom), resized to the size of the picture."""
    return picture.crop(box).resize(picture.size, Image.Resampling.BILINEAR)
