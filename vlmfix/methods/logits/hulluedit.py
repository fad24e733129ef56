"""HulluEdit: the last hidden state keeps what lies in the span of image states (arXiv 2602.22727)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ReadsEarlyExits, RemembersSequences
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.logits.image_states import gathered
from vlmfix.methods.logits.subspaces import ImageStates, text_span
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range, check_whole
from vlmfix.models.profiles import Profile

# Published for 32 layers.
_ANCHOR, _DEPTH = 26, 32
_EPS = 1e-6


@register_method("hulluedit")
@dataclass(frozen=True, kw_only=True)
class HulluEdit(Method, ReadsEarlyExits, RemembersSequences):
    """HulluEdit (arXiv 2602.22727): of the hidden state that the output head reads, the part in the span of
    image states is kept; the part along the main directions of past text, and the rest, are shrunk, the more
    the less of it lies in that span.

    Image and text states are those that enter `anchor_layer`; image states that are like the hidden state
    count most. As in the released code, these are compared with a hidden state after the final norm. Only the
    logits of the step change. The paper keeps states with enough of the image as they are, by bounds that are
    not known; its code, with whose POPE settings for LLaVA-1.5 this comes, does not. Where the released code
    takes positions 1 to 576 for the image, this takes the image tokens that enter the layer. For other depths
    than 32 the anchor layer is scaled, which is not published. Directions of no spread take no part.

    Args:
        anchor_layer: 0-based; None: 26 of 32, at the same depth.
        rank_evidence: dimensions of the image span, 1 or more.
        rank_prior: dimensions of the text span, 0 or more.
        kappa: how strongly what lies outside the image span is shrunk, in [0, 100].
        lambda_prior: how strongly the text part is shrunk on top, in [0, 100].
        weight_temperature: of the weights of image states, in [0.01, 100].
        vcr_floor: least share of the image span that is reckoned with, in [0, 1].
        pcr_ceiling: greatest share of the text span, in [0, 1].
        pcr_threshold: share of the text span from which it is shrunk on top, in [0, 1].
        lambda_n_max: limit of the first strength, in [0, 1000].
        lambda_p_max: limit of the second, in [0, 1000].
        norm_beta: how far the length of the state is restored, in [0, 1].
        blend: share of the edited state in what the head reads, in [0, 1]; 0 leaves the model as it is.
        window: so many past text states at most count, the newest ones; None: all.
    """

    anchor_layer: int | None = None
    rank_evidence: int = 8
    rank_prior: int = 5
    kappa: float = 0.5
    lambda_prior: float = 0.22
    weight_temperature: float = 1.15
    vcr_floor: float = 0.045
    pcr_ceiling: float = 0.92
    pcr_threshold: float = 0.015
    lambda_n_max: float = 3.2
    lambda_p_max: float = 3.8
    norm_beta: float = 0.74
    blend: float = 0.76
    window: int | None = None

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="the last hidden state, outside the span of image states, is shrunk",
        where="every step, before the output head",
        forwards=1.0,
        provenance="released code",
        paper="2602.22727",
    )
    identity_parameters: ClassVar = {"blend": 0}
    search_space: ClassVar = {"blend": Between(0.2, 1), "kappa": Between(0.1, 2)}
    keeps_prefix: ClassVar = True

    def __post_init__(self) -> None:
        if self.anchor_layer is not None:
            check_whole("anchor_layer", self.anchor_layer, 0)
        check_whole("rank_evidence", self.rank_evidence, 1)
        check_whole("rank_prior", self.rank_prior, 0)
        for name in ("kappa", "lambda_prior"):
            check_range(name, getattr(self, name), 0, 100)
        check_range("weight_temperature", self.weight_temperature, 0.01, 100)
        for name in ("vcr_floor", "pcr_ceiling", "pcr_threshold", "norm_beta", "blend"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("lambda_n_max", "lambda_p_max"):
            check_range(name, getattr(self, name), 0, 1000)
        if self.window is not None:
            check_whole("window", self.window, 1)

    @property
    def needs_final_norm(self) -> bool:
        return False

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        layer = self.anchor_layer
        if layer is None:
            layer = min(round(_ANCHOR * depth / _DEPTH), depth - 1)
        if layer >= depth:
            raise ValueError(f"anchor_layer is {layer}; the layers of this model go from 0 to {depth - 1}")
        return dataclasses.replace(self, anchor_layer=layer)

    def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
        assert self.anchor_layer is not None
        return (self.anchor_layer,) if context.layout.has_image else ()

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> None:
        if layer != self.anchor_layer or not context.layout.has_image:
            return
        layout = context.layout_at(layer)
        context.decline(
            self,
            "no image token is left in the anchor layer",
            context.layout.image_tokens.any(dim=1) & ~layout.image_tokens.any(dim=1),
        )
        if not bool(self.takes(context).any()):
            return
        states, known = gathered(hidden_states, layout.image_tokens)
        context.state[self] = ImageStates.of(states.float(), known)
        text = layout.after_last_image.clone()
        text[:, -1] = False
        states, known = gathered(hidden_states, text)
        self._remember(context, states.float(), known)

    def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
        image = context.state.get(self)
        if image is None:
            return ()
        assert self.anchor_layer is not None
        texts, known = context.memory[self, "texts"], context.memory[self, "known"]
        if context.step > 0:
            new = context.early_exits[self.anchor_layer].to(texts)[:, None]
            more = known.new_ones(len(known), 1)
            texts, known = self._remember(
                context, torch.cat([texts, new], dim=1), torch.cat([known, more], dim=1)
            )
        state = hidden_states.float().to(texts.device)
        evidence, context.memory[self, "directions"] = image.span(
            state,
            rank=self.rank_evidence,
            temperature=self.weight_temperature,
            start=context.memory.get((self, "directions")),
        )
        prior = text_span(texts, known, evidence, rank=self.rank_prior)
        split = Split.of(state, evidence, prior)
        context.measure(self, size=split.vcr[:, None], text=split.pcr[:, None])
        return [self.shrink(split)]

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if not branches:
            return logits
        return torch.where(self.takes(context).to(logits.device)[:, None], branches[0], logits)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {
                "size": "share of the squared hidden state in the span of image states; 'text': of past text"
            }

    def inactive_reason(self, context: DecodeContext) -> str:
        return (
            "what it shrinks is too little to move the distribution of a token; raise blend, kappa or "
            "lambda_prior"
        )

    def strengths(self, vcr: Tensor, pcr: Tensor) -> tuple[Tensor, Tensor]:
        """How strongly the rest, and on top the text part, are shrunk, `(batch,)` each (released code).

        Args:
            vcr: see `Split`, `(batch,)`.
            pcr: see `Split`, `(batch,)`.
        """
        seen, said = vcr.clamp(self.vcr_floor, 1), pcr.clamp(0, self.pcr_ceiling)
        rest = (self.kappa * (1 - seen) / (seen + _EPS)).clamp(0, self.lambda_n_max)
        text = (self.lambda_prior * said / (1 - said + _EPS)).clamp(0, self.lambda_p_max)
        return rest, torch.where(said >= self.pcr_threshold, text, 0.0)

    def shrink(self, split: Split) -> Tensor:
        """The state whose parts are shrunk, with a part of its length restored, `(batch, hidden)`."""
        rest, text = (each[:, None] for each in self.strengths(split.vcr, split.pcr))
        left = split.state - split.evidence - split.prior
        edited = split.evidence + split.prior / (1 + rest + text) + left / (1 + rest)
        lengths = [(each.square().sum(dim=-1, keepdim=True) + _EPS).sqrt() for each in (split.state, edited)]
        restored = edited * (lengths[0] / lengths[1]) ** self.norm_beta
        return (1 - self.blend) * split.state + self.blend * restored

    def _remember(self, context: DecodeContext, texts: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what of past text states is in the window."""
        start = 0 if self.window is None else -self.window
        texts, known = texts[:, start:], known[:, start:]
        context.memory[self, "texts"], context.memory[self, "known"] = texts, known
        return texts, known


class Split(NamedTuple):
    """A hidden state in three parts.

    Args:
        state: the sum of the three, `(batch, hidden)`.
        evidence: its part in the span of image states.
        prior: its part along the main directions of past text.
    """

    state: Tensor
    evidence: Tensor
    prior: Tensor

    @classmethod
    def of(cls, state: Tensor, evidence: Tensor, prior: Tensor) -> Split:
        """Split a state `(batch, hidden)` by orthonormal directions, `(batch, hidden, rank)` each."""
        parts = [(each @ (each.mT @ state[..., None]))[..., 0] for each in (evidence, prior)]
        return cls(state, *parts)

    @property
    def vcr(self) -> Tensor:
        """Share of the squared state in the span of image states, `(batch,)`."""
        return self._share(self.evidence)

    @property
    def pcr(self) -> Tensor:
        """Share of the squared state along the main directions of past text, `(batch,)`."""
        return self._share(self.prior)

    def _share(self, part: Tensor) -> Tensor:
        return part.square().sum(dim=-1) / (self.state.square().sum(dim=-1) + _EPS)
