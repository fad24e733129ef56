"""What methods share that merge patches inside the vision encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vlmfix.engine.capabilities import EditsVisionEncoder
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.engine.vision_encoder import Removable, VisionEncoder
from vlmfix.errors import UnsupportedError
from vlmfix.methods.pruning.base import TokenPruning
from vlmfix.methods.validation import check_flag, check_whole


class Tokens(NamedTuple):
    """The tokens of a layer of the vision encoder, and what they stand for.

    Args:
        states: `(pictures, tokens, width)`.
        sizes: how many tokens of the embeddings each is made of, `(pictures, tokens)` float32.
        sources: which token each one of the embeddings went into, `(pictures, all tokens)` int64.
    """

    states: Tensor
    sizes: Tensor
    sources: Tensor

    @classmethod
    def unmerged(cls, states: Tensor) -> Tokens:
        """Tokens that stand for themselves."""
        numbers = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
        return cls(states, torch.ones_like(numbers, dtype=torch.float32), numbers)


class Merge(NamedTuple):
    """Into which token each one goes.

    Args:
        target: by number of the tokens after it, `(pictures, tokens)` int64.
        size: number of tokens after it.
    """

    target: Tensor
    size: int

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """Weighted means over what goes into each token.

        Args:
            values: `(pictures, tokens, width)`.
            weights: `(pictures, tokens)`, above 0.

        Returns:
            `(pictures, size, width)`, in the dtype of `values`.
        """
        shares = self._members() * weights[:, :, None]
        # A product of matrices, as sums by index have no fixed order on a GPU.
        means = (shares.mT @ values.float()) / shares.sum(dim=1)[:, :, None]
        return means.to(values.dtype)

    def total(self, sizes: Tensor) -> Tensor:
        """Sums over what goes into each token, `(pictures, size)` from `(pictures, tokens)`."""
        return (self._members() * sizes[:, :, None]).sum(dim=1)

    def applied(self, tokens: Tokens, weights: Tensor) -> Tokens:
        """The tokens after it, means with these weights, `(pictures, tokens)`."""
        return Tokens(
            self.mean(tokens.states, weights),
            self.total(tokens.sizes),
            self.target.gather(1, tokens.sources),
        )

    def _members(self) -> Tensor:
        return nn.functional.one_hot(self.target, self.size).float()


class Layer:
    """A layer of a CLIP or SigLIP encoder, by its parts.

    Args:
        module: the layer.
        first_is_class: whether the first token is the class token, which is never merged.

    Raises:
        UnsupportedError: its attention has other parts.
    """

    def __init__(self, module: nn.Module, *, first_is_class: bool) -> None:
        self.parts: Any = module
        self.first_is_class = first_is_class
        attention: Any = self.parts.self_attn
        names = ("q_proj", "k_proj", "v_proj", "out_proj", "num_heads", "head_dim", "scale")
        if not all(hasattr(attention, name) for name in names):
            raise UnsupportedError(
                f"{type(attention).__name__} is not the attention of CLIP or SigLIP; use a method that acts "
                "elsewhere"
            )
        self.scale: float = attention.scale

    def heads(self, projection: str, states: Tensor) -> Tensor:
        """A projection of normed states, `(pictures, heads, tokens, head_dim)`."""
        attention: Any = self.parts.self_attn
        projected: Tensor = getattr(attention, projection)(states)
        return projected.view(*states.shape[:2], attention.num_heads, attention.head_dim).transpose(1, 2)

    def add_attended(self, states: Tensor, attended: Tensor) -> Tensor:
        """States with what attention adds to them, from outputs `(pictures, heads, tokens, head_dim)`."""
        added: Tensor = self.parts.self_attn.out_proj(attended.transpose(1, 2).flatten(2).to(states.dtype))
        return states + added

    def feed_forward(self, tokens: Tokens) -> Tokens:
        """Tokens after the feed-forward part."""
        added: Tensor = self.parts.mlp(self.parts.layer_norm2(tokens.states))
        return tokens._replace(states=tokens.states + added)


@dataclass(frozen=True, kw_only=True)
class TokenMerging(TokenPruning, EditsVisionEncoder):
    """Base of the methods that merge patches inside a CLIP or SigLIP encoder, layer by layer.

    The projector gets as many tokens as ever, each patch the state of the token that it went into. Of those
    that are one token, the first alone goes on to the language model, for all of them.

    Args:
        merged_per_layer: by how many tokens each layer has fewer, at most half of them; 0 leaves the model as
            it is.
        first_layer: of the vision encoder, in which tokens are merged, 0-based; the last one is the last that
            runs for the projector.
        proportional_attention: whether a token gets attention for all that it is made of.
    """

    merged_per_layer: int = 8
    first_layer: int = 0
    proportional_attention: bool = True

    identity_parameters: ClassVar = {"merged_per_layer": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("merged_per_layer", self.merged_per_layer, 0)
        check_whole("first_layer", self.first_layer, 0)
        check_flag("proportional_attention", self.proportional_attention)

    @abstractmethod
    def run_layer(self, layer: Layer, tokens: Tokens) -> Tokens:
        """What a layer makes of its tokens, of which it merges some."""

    def hook_encoder(self, encoder: VisionEncoder) -> Sequence[Removable]:
        _check_grid(encoder)
        layers = range(self.first_layer, encoder.last_layer + 1)
        if not layers:
            raise ValueError(
                f"first_layer is {self.first_layer}; the projector of this model reads what leaves layer "
                f"{encoder.last_layer} of the vision encoder, so choose that one or an earlier one"
            )
        patches = getattr(encoder.embeddings, "num_patches", None)
        if patches is not None and self.merged_per_layer * len(layers) >= patches:
            raise ValueError(
                f"merged_per_layer is {self.merged_per_layer}, in {len(layers)} layers, and the vision "
                f"encoder has {patches} patches; it must be {(patches - 1) // len(layers)} or less"
            )
        parts = [Layer(module, first_is_class=encoder.has_class_token) for module in encoder.layers]
        between: list[Tokens] = []
        return [
            encoder.replace_layer(index, partial(self._forward, encoder, parts[index], index, between))
            for index in layers
        ]

    def _forward(
        self,
        encoder: VisionEncoder,
        layer: Layer,
        index: int,
        between: list[Tokens],
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The forward of a layer; `between` has what the layer before knows of its tokens."""
        if attention_mask is not None:
            raise UnsupportedError(
                "the vision encoder of this model masks patches, which merging does not follow; use a method "
                "that acts elsewhere"
            )
        if index == self.first_layer:
            between[:] = [Tokens.unmerged(hidden_states)]
        _, sizes, sources = (each.to(hidden_states.device) for each in between.pop())
        tokens = self.run_layer(layer, Tokens(hidden_states, sizes, sources))
        if index < encoder.last_layer:
            between.append(tokens)
            return tokens.states
        encoder.groups = first_of_group(tokens.sources[:, _unused(encoder) :])
        sources = tokens.sources[..., None].expand(-1, -1, tokens.states.shape[-1])
        return tokens.states.gather(1, sources)

    def begin(self, context: DecodeContext) -> None:
        """Declines nothing: the encoder has no prompt, and the last token of one always stays."""

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer != 0:
            return None
        assert context.vision_encoder is not None
        groups = context.vision_encoder.groups
        image_tokens = context.layout.image_tokens
        if groups is None:
            raise UnsupportedError(
                "the images of the prompt did not go through the vision encoder of this call; pass "
                "pixel_values, not features"
            )
        groups = groups.to(image_tokens.device)
        context.state[self, "largest"] = nn.functional.one_hot(groups).sum(dim=1).max()
        # A generate call may encode its images once for all copies of a prompt.
        copies = context.copies if groups.numel() * context.copies == int(image_tokens.sum()) else 1
        shown = image_tokens[::copies]
        if groups.numel() != int(shown.sum()):
            raise UnsupportedError(
                f"the prompts have {int(shown.sum())} image tokens, and the vision encoder {groups.numel()} "
                "patches; merging needs a token for each, as in LLaVA"
            )
        stays = groups == torch.arange(groups.shape[1], device=groups.device)
        mask = torch.ones_like(shown)
        mask[shown] = stays.flatten()
        mask = mask.repeat_interleave(copies, dim=0)
        mask[:, -1] = True  # whatever it is, the answer begins after it
        return mask

    def report(self, context: DecodeContext, sums: Sums) -> None:
        super().report(context, sums)
        if (self, "largest") in context.state:
            sums.details["largest group"] = int(context.state[self, "largest"])


def first_of_group(sources: Tensor) -> Tensor:
    """The first patch that went into the same token, for each, `(pictures, patches)` int64.

    Args:
        sources: the token that each patch went into, `(pictures, patches)` int64.
    """
    return (sources[:, :, None] == sources[:, None, :]).int().argmax(dim=2)


def renumbered(partner: Tensor, leaves: Tensor, count: int) -> Merge:
    """Tokens in a new order, those at even places first: each one that leaves goes into its partner.

    Args:
        partner: of those that leave, by number, `(pictures, tokens)` int64; a partner may leave, too, but not
            its own one.
        leaves: `(pictures, tokens)` bool.
        count: how many leave in each picture.
    """
    tokens = leaves.shape[1]
    order = torch.cat([torch.arange(0, tokens, 2), torch.arange(1, tokens, 2)]).to(leaves.device)
    stays = ~leaves[:, order]
    numbers = torch.empty_like(partner)
    numbers[:, order] = stays.cumsum(dim=1) - 1
    own = torch.arange(tokens, device=leaves.device).expand_as(partner)
    step = torch.where(leaves, partner, own)
    return Merge(numbers.gather(1, step.gather(1, step)), tokens - count)


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The partner of each row, and the rows that have the best ones.

    Args:
        scores: `(pictures, rows, partners)`; -inf for pairs that must not be. Of equal ones the first wins.
        count: how many rows to choose.

    Returns:
        The number of the partner, `(pictures, rows)` int64, and which rows are chosen, `(pictures, rows)`.
    """
    value, partner = scores.max(dim=2)
    order = value.argsort(dim=1, descending=True, stable=True)[:, :count]
    return partner, torch.zeros_like(value, dtype=torch.bool).scatter_(1, order, True)


def _unused(encoder: VisionEncoder) -> int:
    """How many tokens the projector is not given: the first one, where features are selected by "default"."""
    return int(getattr(encoder.config, "vision_feature_select_strategy", "full") == "default")


def _check_grid(encoder: VisionEncoder) -> None:
    if getattr(encoder.config, "image_grid_pinpoints", None) is not None:
        raise UnsupportedError(
            f"{encoder.config.model_type} cuts pictures into tiles, whose layout in the prompt needs all of "
            "their tokens; merging is for models with one tile (LLaVA)"
        )
