"""VAR: the attention that sinks waste, handed to the image tokens that carry content."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ActsInStaticSteps
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.static_edits import Edit, StaticEdits
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_flag, check_range, check_whole
from vlmfix.models.profiles import Profile

DEFAULT_THRESHOLD = 20.0

# Below this attention on the target tokens there is nothing to be proportional to.
_NO_TARGET = 1e-12

# Generated keys for which the prepared groups get room at a time.
_ROOM = 256


@register_method("var")
@dataclass(frozen=True, kw_only=True)
class VAR(Method, ActsInStaticSteps):
    """Visual Attention Redistribution (arXiv 2503.03321).

    Attention sinks are tokens with a massive activation in a few fixed dimensions. In heads that look at the
    image and are not themselves caught by visual sinks, part of the attention on all sinks goes to the
    non-sink image tokens, in proportion to what they have. Sinks are found per layer in the prefill and
    frozen; rows after the last image and generated rows are edited. The released code moves 0.4, which the
    text of the paper leaves uncertain. It means to leave the last layer alone, as the paper does, and as it
    runs it edits that, too: published figures are those of `skip_last_layer=False`.

    Args:
        moved_fraction: share of the attention on sinks that is moved, in [0, 1]; 0 leaves the model as it is.
        min_image_mass: heads are edited whose attention on the image is at least this, in [0, 1].
        min_non_sink_share: and at least this share of it on non-sink tokens, in [0, 1]; the paper's rho.
        sink_threshold: a token is a sink above this RMS-normalised activation, positive and at most the
            square root of the hidden size; None: from the checkpoint's profile, else 20.
        sink_dimensions: dimensions of the residual stream that mark sinks; None: from the checkpoint's
            profile.
        first_layer: first layer that may be edited, 0-based.
        skip_last_layer: leave the last layer alone.
    """

    moved_fraction: float = 0.4
    min_image_mass: float = 0.2
    min_non_sink_share: float = 0.5
    sink_threshold: float | None = None
    sink_dimensions: tuple[int, ...] | None = None
    first_layer: int = 2
    skip_last_layer: bool = True

    info = MethodInfo(
        stage="attention",
        changes="weights: from sinks to image tokens",
        where="text rows after the image and new rows; layers 2 to last but one",
        forwards=1.0,
        provenance="released code",
        paper="2503.03321",
    )
    identity_parameters: ClassVar = {"moved_fraction": 0}
    search_space: ClassVar = {
        "moved_fraction": Between(0.2, 1),
        "min_non_sink_share": Between(0, 0.8),
        "min_image_mass": Between(0.05, 0.3),
    }
    keeps_prefix: ClassVar = True

    def __post_init__(self) -> None:
        check_range("moved_fraction", self.moved_fraction, 0, 1)
        check_range("min_image_mass", self.min_image_mass, 0, 1)
        check_range("min_non_sink_share", self.min_non_sink_share, 0, 1)
        if self.sink_threshold is not None:
            check_range("sink_threshold", self.sink_threshold, 0, 1000)
        if self.sink_dimensions is not None:
            object.__setattr__(self, "sink_dimensions", _dimensions(self.sink_dimensions))
        check_whole("first_layer", self.first_layer, 0)
        check_flag("skip_last_layer", self.skip_last_layer)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        dimensions = self.sink_dimensions
        if dimensions is None and profile is not None:
            dimensions = profile.get("sink_dimensions")
        if dimensions is None:
            raise ValueError(
                "no sink dimensions are known for this checkpoint; find them with 'vlmfix calibrate --model "
                "MODEL --images DIR --method var', or pass sink_dimensions"
            )
        threshold = self.sink_threshold
        if threshold is None and profile is not None:
            threshold = profile.get("sink_threshold")
        end = config.get_text_config().num_hidden_layers - self.skip_last_layer
        if self.first_layer >= end:
            raise ValueError(
                f"first_layer is {self.first_layer}; the layers of this model that can be edited go from 0 "
                f"to {end - 1}{', the last one is left out' if self.skip_last_layer else ''}"
            )
        hidden_size = config.get_text_config().hidden_size
        if max(dimensions) >= hidden_size:
            raise ValueError(
                f"sink_dimensions has {max(dimensions)}; the dimensions of this model go from 0 to "
                f"{hidden_size - 1}"
            )
        if threshold is None:
            threshold = DEFAULT_THRESHOLD
        if threshold >= hidden_size**0.5:
            warnings.warn(
                f"VAR will find no sinks: sink_threshold is {threshold:g}, but in a model of hidden size "
                f"{hidden_size} no score exceeds {hidden_size**0.5:.1f}; lower it, or run 'vlmfix calibrate'",
                stacklevel=2,
            )
        return dataclasses.replace(self, sink_dimensions=_dimensions(dimensions), sink_threshold=threshold)

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> None:
        if not self._acts(context, layer):
            return
        assert self.sink_dimensions is not None
        assert self.sink_threshold is not None
        sinks = find_sinks(hidden_states, self.sink_dimensions, sink_threshold=self.sink_threshold)
        layout, device = context.layout_at(layer), hidden_states.device
        context.state[self, layer] = TokenGroups.of(
            sinks & layout.real_tokens.to(device), layout.image_tokens.to(device)
        )

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return context.layout_at(layer).rows_after_last_image if self._acts(context, layer) else None

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        groups: TokenGroups = context.state[self, layer]
        if groups.keys < weights.shape[-1]:
            groups = context.state[self, layer] = groups.with_room(_ROOM)
        return groups.redistribute(weights, **self._bounds)

    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> StaticEdits | None:
        if not self._acts(context, layer):
            return None
        groups: TokenGroups = context.state[self, layer]
        return StaticEdits(weights=Edit(_redistributed, groups.with_room(keys - groups.keys), self._bounds))

    @property
    def _bounds(self) -> dict[str, float]:
        return {
            "moved_fraction": self.moved_fraction,
            "min_image_mass": self.min_image_mass,
            "min_non_sink_share": self.min_non_sink_share,
        }

    def inactive_reason(self, context: DecodeContext) -> str:
        groups = [value for value in context.state.values() if isinstance(value, TokenGroups)]
        if not any(bool(each.has_visual_sink.any()) for each in groups):
            return (
                f"no image token has a sink score above {self.sink_threshold:g}; lower sink_threshold or run "
                "'vlmfix calibrate --method var'"
            )
        return (
            f"no head with visual sinks puts {self.min_image_mass:g} of its attention on the image and "
            f"{self.min_non_sink_share:g} of that on other tokens; lower min_image_mass or min_non_sink_share"
        )

    def _acts(self, context: DecodeContext, layer: int) -> bool:
        end = context.num_layers - 1 if self.skip_last_layer else context.num_layers
        return self.first_layer <= layer < end and context.layout_at(layer).has_image


def find_sinks(hidden_states: Tensor, sink_dimensions: Sequence[int], *, sink_threshold: float) -> Tensor:
    """Tokens with a massive activation in one of the sink dimensions (arXiv 2503.03321, section 3).

    Args:
        hidden_states: residual stream entering a layer, before its norm, `(batch, tokens, hidden)`.
        sink_dimensions: indices into the last axis.
        sink_threshold: lower bound, exclusive, on `|x[d]| / RMS(x)`.

    Returns:
        `(batch, tokens)` bool.
    """
    return sink_scores(hidden_states, sink_dimensions) > sink_threshold


def sink_scores(hidden_states: Tensor, sink_dimensions: Sequence[int]) -> Tensor:
    """Largest RMS-normalised activation over the sink dimensions, in float32; `(batch, tokens)`.

    At most the square root of the hidden size, so that small models need a low threshold.
    """
    largest = hidden_states[..., list(sink_dimensions)].float().abs().amax(dim=-1)
    return largest * torch.rsqrt(hidden_states.float().square().mean(dim=-1) + 1e-6)


def redistribute(
    weights: Tensor,
    sink_tokens: Tensor,
    image_tokens: Tensor,
    *,
    moved_fraction: float,
    min_image_mass: float,
    min_non_sink_share: float,
) -> Tensor:
    """Move attention from sinks to other image tokens in heads that look at the image (arXiv 2503.03321).

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.
        sink_tokens: text and visual sinks, `(batch, keys)` bool.
        image_tokens: `(batch, keys)` bool.
        moved_fraction: share of the sinks' attention that is moved, in [0, 1].
        min_image_mass: a head is edited in a row whose image attention is at least this.
        min_non_sink_share: and at least this share of it on image tokens that are no sinks.

    Returns:
        Weights of the same shape and dtype with the same sums; rows and heads that are not selected are
        unchanged to the bit, as are all rows of a sample without a visual sink.
    """
    return TokenGroups.of(sink_tokens, image_tokens).redistribute(
        weights,
        moved_fraction=moved_fraction,
        min_image_mass=min_image_mass,
        min_non_sink_share=min_non_sink_share,
    )


class TokenGroups(NamedTuple):
    """The keys that `redistribute` tells apart, prepared once a prompt for the steps of its decoding.

    Args:
        members: 1.0 for sinks, visual sinks and targets in this order, `(batch, 1, 1, 3, keys)`.
        share_guard: added to the image attention before it divides, `(batch, 1, 1, 1)`.
        has_visual_sink: samples that may be edited at all, `(batch, 1, 1, 1)` bool.
    """

    members: Tensor
    share_guard: Tensor
    has_visual_sink: Tensor

    @classmethod
    def of(cls, sink_tokens: Tensor, image_tokens: Tensor) -> TokenGroups:
        """Groups of boolean masks `(batch, keys)`."""
        visual_sinks = sink_tokens & image_tokens
        members = torch.stack([sink_tokens, visual_sinks, image_tokens & ~sink_tokens], dim=1)

        def per_sample(values: Tensor) -> Tensor:
            return values[:, None, None, None]

        return cls(
            members[:, None, None].float(),
            per_sample(1e-6 * image_tokens.sum(dim=-1)),
            per_sample(visual_sinks.any(dim=-1)),
        )

    @property
    def keys(self) -> int:
        """Number of keys that the groups cover."""
        return self.members.shape[-1]

    def with_room(self, keys: int) -> TokenGroups:
        """The same groups with room for so many generated keys, which belong to none."""
        return self._replace(members=nn.functional.pad(self.members, (0, keys)))

    def redistribute(
        self, weights: Tensor, *, moved_fraction: float, min_image_mass: float, min_non_sink_share: float
    ) -> Tensor:
        """See the function of this name; `weights` may have fewer keys than the groups cover."""
        attention = weights.to(torch.promote_types(weights.dtype, torch.float32))
        members = self.members[..., : attention.shape[-1]]
        masses = (attention.unsqueeze(-2) * members).sum(dim=-1, keepdim=True)
        sink_mass, visual_sink_mass, target_mass = masses.unbind(dim=-2)
        image_mass = visual_sink_mass + target_mass
        selected = (
            (image_mass >= min_image_mass)
            & (visual_sink_mass / (image_mass + self.share_guard) <= 1 - min_non_sink_share)
            & (target_mass > _NO_TARGET)
            & self.has_visual_sink
        )
        taken = torch.where(selected, moved_fraction, 0.0)
        given = taken * sink_mass / target_mass.clamp_min(_NO_TARGET)
        sinks, _, targets = members.unbind(dim=-2)
        change = torch.addcmul(given * targets, taken, sinks, value=-1)
        return torch.addcmul(attention, attention, change).to(weights.dtype)


def _redistributed(
    weights: Tensor, members: Tensor, share_guard: Tensor, has_visual_sink: Tensor, **bounds: float
) -> Tensor:
    return TokenGroups(members, share_guard, has_visual_sink).redistribute(weights, **bounds)


def _dimensions(values: Any) -> tuple[int, ...]:
    """Sink dimensions as a sorted tuple of indices; a single one may stand alone."""
    several = (
        list(values)
        if isinstance(values, Iterable) and not isinstance(values, str | bytes | dict)
        else [values]
    )
    if not several or any(type(value) is not int or value < 0 for value in several):
        raise ValueError(
            f"sink_dimensions is {values!r}; it must hold one or more dimensions of the model, 0 or more"
        )
    return tuple(sorted(set(several)))
