"""VTI: feed-forward parts of text decoder and vision encoder, turned towards what grounded answers have."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import EditsVisionEncoder
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import Edit
from vlmfix.engine.stats import Sums
from vlmfix.engine.vision_encoder import VisionEncoder
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.steering.base import StreamFormula, angle, check_file_name, directions_file, steer, unit
from vlmfix.methods.validation import check_range
from vlmfix.models.directions import read_directions
from vlmfix.models.profiles import Profile

_SCALE = 0.1


@register_method("vti")
@dataclass(frozen=True, kw_only=True)
class VTI(StreamFormula, EditsVisionEncoder):
    """Visual and Textual Intervention (arXiv 2410.15778).

    What the feed-forward part of each decoder layer adds is turned, with its length kept, towards the
    difference between truthful and hallucinating captions; in a CLIP or SigLIP encoder each patch likewise
    towards its mean under masked pictures. Directions belong to a checkpoint: `vlmfix calibrate --method vti`
    finds them from annotated pictures. Several steering methods turn one after the other. A gate
    scales what is done in the decoder, and not in the encoder.

    The defaults are of released code, `alpha_text` of its arguments and `alpha_image` of its README; its
    scripts are for MMHal-Bench alone.

    Args:
        alpha_text: strength in the text decoder, in [0, 10].
        alpha_image: strength in the vision encoder, in [0, 10]; None: 0.9 where the file has directions for
            it, which encoders with a fixed number of tokens get, else 0.
        directions: file of the directions; None: that of the checkpoint's profile.
    """

    alpha_text: float = 0.8
    alpha_image: float | None = None
    directions: str | None = None

    info: ClassVar = MethodInfo(
        stage="steering",
        changes="what feed-forward parts add, turned towards truthful captions",
        where="all rows; all layers of the decoder and of a CLIP or SigLIP encoder",
        forwards=1.0,
        provenance="released code",
        paper="2410.15778",
    )
    identity_parameters: ClassVar = {"alpha_text": 0, "alpha_image": 0}
    parameter_files: ClassVar[Sequence[str]] = ("directions",)
    stream_sites: ClassVar = ("feed_forward",)
    search_space: ClassVar = {"alpha_text": Between(0.2, 4)}

    def __post_init__(self) -> None:
        check_range("alpha_text", self.alpha_text, 0, 10)
        if self.alpha_image is not None:
            check_range("alpha_image", self.alpha_image, 0, 10)
        check_file_name("directions", self.directions)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        file = directions_file(self.name, self.directions, config, profile, "vti_directions")
        has_image = "image" in read_directions(file, self.name, config)
        alpha = (0.9 if has_image else 0.0) if self.alpha_image is None else self.alpha_image
        if alpha and not has_image:
            raise ValueError(
                f"alpha_image is {alpha:g}, and {file!r} has no directions for the vision encoder; use "
                "alpha_image=0"
            )
        return dataclasses.replace(self, alpha_image=alpha, directions=file)

    def vectors(self, part: str, config: PreTrainedConfig) -> Tensor:
        """Directions of "text", `(layers, hidden)`, or "image", `(layers, tokens, width)`."""
        assert self.directions is not None
        return read_directions(self.directions, VTI.name, config)[part]

    @property
    def edits_encoder(self) -> bool:
        return bool(self.alpha_image)

    def begin(self, context: DecodeContext) -> None:
        if self.edits_encoder:
            context.count(self, None, context.layout.image_tokens.any(dim=1).long(), 1)

    def edits_layer(self, layer: int) -> bool:
        return self.alpha_text != 0

    def formula(self, context: DecodeContext, layer: int, device: torch.device) -> Edit:
        key = self, layer
        if key not in context.state:
            assert context.config is not None
            found = self.vectors("text", context.config)[layer]
            shift = _SCALE * self.alpha_text * unit(found.to(device))
            context.state[key] = shift[None]  # the same in all sequences
        return Edit(_steered, (context.state[key][0],))

    def hook_encoder(self, encoder: VisionEncoder) -> Sequence[RemovableHandle]:
        found = self.vectors("image", encoder.config)
        if len(found) != len(encoder.layers):
            raise UnsupportedError(
                f"{self.directions!r} is for a vision encoder of {len(found)} layers, and this one has "
                f"{len(encoder.layers)}; run 'vlmfix calibrate --method vti' again"
            )
        assert self.alpha_image is not None
        shifts = _SCALE * self.alpha_image * unit(found)
        return [
            part.register_forward_hook(functools.partial(_turn, shift))
            for part, shift in zip(encoder.feed_forwards, shifts, strict=True)
        ]

    def inactive_reason(self, context: DecodeContext) -> str:
        return f"alpha_text is 0, and {self.directions!r} has no directions for the encoder; raise alpha_text"

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "degrees by which what is added in the decoder turns"}


def _steered(states: Tensor, shift: Tensor) -> tuple[Tensor, tuple[Tensor]]:
    """States that VTI has steered, and degrees by which the newest turned."""
    after = steer(states, shift)
    return after, (angle(states[:, -1:], after[:, -1:]),)


def _turn(shift: Tensor, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook that steers what a feed-forward part of the vision encoder adds, `(tiles, tokens, width)`."""
    if output.shape[1:] != shift.shape:
        raise UnsupportedError(
            f"VTI has directions for {shift.shape[0]} tokens of the vision encoder, and this picture has "
            f"{output.shape[1]}; use alpha_image=0"
        )
    return steer(output, shift.to(output.device)).to(output.dtype)


def direction(differences: Tensor) -> Tensor:
    """Mean of differences plus their first principal component, of length 1 (arXiv 2410.15778).

    The sign of the component is such that the sample with the largest coefficient has a positive one.

    Args:
        differences: `(..., samples, features)`, two samples or more.

    Returns:
        `(..., features)` float32.
    """
    differences = differences.double()
    mean = differences.mean(dim=-2)
    centred = differences - mean[..., None, :]
    values, vectors = torch.linalg.eigh(centred @ centred.mT)  # samples are fewer than features
    coefficients = vectors[..., -1]
    largest = coefficients.gather(-1, coefficients.abs().argmax(dim=-1, keepdim=True))
    component = (coefficients[..., None, :] @ centred)[..., 0, :] * largest.sign()
    is_spread = values[..., -1:] > 1e-20
    component = torch.where(is_spread, component / component.norm(dim=-1, keepdim=True).clamp_min(1e-12), 0.0)
    return (mean + component).float()
