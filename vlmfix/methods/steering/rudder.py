"""RUDDER: what attention gathers from the prompt in a late layer, added again in every step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import at_depth
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.sid import check_layer
from vlmfix.methods.registry import register_method
from vlmfix.methods.steering.base import NewRowEdit
from vlmfix.methods.validation import check_choice, check_flag, check_range, check_whole
from vlmfix.models.profiles import Profile
from vlmfix.models.structure import StreamSite

_SHARE = 0.2


@register_method("rudder")
@dataclass(frozen=True, kw_only=True)
class RUDDER(NewRowEdit):
    """Residual-Update Directed Decoding Regulation (arXiv 2511.10292).

    What the attention of one late layer adds to the residual stream, pooled over the prompt, points at the
    evidence of this very image. A multiple of this unit vector is added after the same attention at the last
    prompt token and at new ones; with the gate of the paper, the more the stream agrees with it already.

    Formulas are those of the paper, and not of its released code, which takes the normed input of attention
    from what it pools and compares with the output of attention. Reconstructed: the row of the first answer
    token is edited, too, by reading it again, as the paper does not say.

    The strength belongs to a checkpoint: `alpha_max` is in units of its residual stream, in the paper
    LLaVA-1.5-7B 20, Idefics2-8B 8 (layer 28 of 32), InstructBLIP 6.5 (layer 1), in released code
    Qwen2.5-VL-7B 5 (layers 25 to 27 of 28). Where no profile knows it, the default is `alpha_share`, a unit
    and a value of this library's own that nobody has published.

    Args:
        alpha_max: length of what is added at most, in [0, 10000]; 0 leaves the model as it is; None: from the
            checkpoint's profile, unless `alpha_share` is given.
        alpha_share: the same as a share of the mean length of the stream over the prompt in this layer, in
            [0, 10]; give one of the two. None: 0.2 where `alpha_max` is not known.
        layer: 0-based; None: layer 30 of 32, at the same depth.
        trust_gate: scale it by the gate of the paper; False is its variant Add.
        steepness: of that gate, in [0, 100], called k there.
        offset: of that gate, in [-10, 10], called c there.
        gate_min: least opening, in [0, 1].
        gate_max: greatest opening, in [0, 1].
        pooling: "norm", weighted by length, or "mean".
    """

    alpha_max: float | None = None
    alpha_share: float | None = None
    layer: int | None = None
    trust_gate: bool = True
    steepness: float = 5.0
    offset: float = 1.0
    gate_min: float = 0.05
    gate_max: float = 1.0
    pooling: str = "norm"

    info: ClassVar = MethodInfo(
        stage="steering",
        changes="what attention adds, moved towards what it gathered from the prompt",
        where="last prompt row and new rows; layer 30 of 32",
        forwards=1.0,
        provenance="reconstruction",
        paper="2511.10292",
    )
    identity_parameters: ClassVar = {"alpha_max": 0}
    keeps_prefix: ClassVar = False
    stream_sites: ClassVar = ("enter", "attention")

    def __post_init__(self) -> None:
        if self.alpha_max is not None:
            check_range("alpha_max", self.alpha_max, 0, 10_000)
        if self.alpha_share is not None:
            check_range("alpha_share", self.alpha_share, 0, 10)
            if self.alpha_max is not None:
                raise ValueError(
                    f"alpha_max is {self.alpha_max:g} and alpha_share {self.alpha_share:g}, and both say how "
                    "long the added vector is; give one of them"
                )
        if self.layer is not None:
            check_whole("layer", self.layer, 0)
        check_flag("trust_gate", self.trust_gate)
        check_range("steepness", self.steepness, 0, 100)
        check_range("offset", self.offset, -10, 10)
        check_range("gate_min", self.gate_min, 0, 1)
        check_range("gate_max", self.gate_max, self.gate_min, 1)
        check_choice("pooling", self.pooling, ("norm", "mean"))

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        layer = at_depth((30, 31), depth)[0] if self.layer is None else self.layer
        check_layer(layer, config)
        length, share = self.alpha_max, self.alpha_share
        if length is None and share is None:
            length = None if profile is None else profile.get("rudder_alpha_max")
            share = _SHARE if length is None else None
        return dataclasses.replace(self, layer=layer, alpha_max=length, alpha_share=share)

    @property
    def is_identity(self) -> bool:
        return 0 in (self.alpha_max, self.alpha_share)

    def begin(self, context: DecodeContext) -> None:
        assert self.layer is not None
        context.check_attention(type(self).__name__, [self.layer])

    def edits_layer(self, layer: int) -> bool:
        return layer == self.layer

    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        return layer == self.layer and context.layout.has_image

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        if site == "enter":
            context.state[self, "enters"] = states
            return states
        entering: Tensor = context.state.pop((self, "enters"))
        if context.is_prefill:
            real = context.layout_at(layer).real_tokens.to(states.device)
            context.state[self, "direction"] = evidence_direction(states, real, pooling=self.pooling)
            if self.alpha_share is not None:
                lengths = (entering.float().norm(dim=-1) * real).sum(dim=1) / real.sum(dim=1)
                context.state[self, "length"] = self.alpha_share * lengths
            return states
        first = context.first_new_row(layer, states.shape[1])
        direction: Tensor = context.state[self, "direction"].to(states.device)[:, None]
        length = self.alpha_max
        if length is None:
            length = context.state[self, "length"].to(states.device)[:, None, None]
        opening = torch.ones_like(states[:, first:, :1], dtype=torch.float32)
        if self.trust_gate:
            agreement = nn.functional.cosine_similarity(entering[:, first:].float(), direction, dim=-1)
            opening = trust(agreement, steepness=self.steepness, offset=self.offset)
            opening = opening.clamp(self.gate_min, self.gate_max)[..., None]
        added = length * opening * direction
        context.measure(self, size=added[:, -1:].norm(dim=-1), opening=opening[:, -1:, 0])
        new = (states[:, first:].float() + added).to(states.dtype)
        return self.with_edited_rows(context, layer, states, new)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "length of what is added to the residual stream"}


def evidence_direction(added: Tensor, tokens: Tensor, *, pooling: str = "norm") -> Tensor:
    """Direction of what attention adds in the prompt (arXiv 2511.10292, CARD); 0 where it adds nothing.

    Args:
        added: `(batch, tokens, hidden)`.
        tokens: those that count, `(batch, tokens)` bool.
        pooling: "norm" weights each token by the length of what it gets, "mean" all alike.

    Returns:
        `(batch, hidden)` float32, of length 1.
    """
    added = added.float() * tokens[..., None]
    weights = added.norm(dim=-1, keepdim=True) if pooling == "norm" else tokens[..., None].float()
    pooled = (weights * added).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-12)
    length = pooled.norm(dim=-1, keepdim=True)
    return torch.where(length < 1e-8, 0.0, pooled / length.clamp_min(1e-8))


def trust(agreement: Tensor, *, steepness: float, offset: float) -> Tensor:
    """Mean of a Beta distribution whose parameters depend on an agreement in [-1, 1] (arXiv 2511.10292).

    Args:
        agreement: cosines, of any shape.
        steepness: k of the paper.
        offset: c of the paper.
    """
    grounded = nn.functional.softplus(steepness * agreement + offset)
    doubtful = nn.functional.softplus(offset - steepness * agreement)
    return grounded / (grounded + doubtful)
