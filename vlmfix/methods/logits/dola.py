"""DoLa: away from what the layer would say that differs most from the last (arXiv 2309.03883)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import AddsExitRows
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import ExitRows
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import LogitsMixer, finite
from vlmfix.methods.logits.early_exit import check_depth, exit_indices
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, OneOf
from vlmfix.methods.validation import check_choice, check_flag, check_range
from vlmfix.models.profiles import Profile

# Of models with more layers than this, only so many of the lowest or highest exits are candidates.
_DEEP, _CANDIDATE_LAYERS = 40, 20


@register_method("dola")
@dataclass(frozen=True, kw_only=True)
class DoLa(LogitsMixer, AddsExitRows):
    """Decoding by Contrasting Layers (arXiv 2309.03883): away from the early exit that differs most from the
    last layer; it needs no image.

    An early exit is the residual stream that enters a layer, turned into logits by the model's own output
    embeddings. As in the released code, the final norm is left out, and the terms of the divergence have
    their arguments swapped, which may choose another exit than the Jensen-Shannon divergence of the paper.
    Unlike there, every sequence chooses for itself. The sets for deep models and tied embeddings are those of
    the implementation that was in transformers.

    Args:
        weight: of the exit, in [0, 100]; 0 leaves only the cut.
        exits: the candidates: "low" (even ones below the middle), "high" (even ones from there), or a list of
            layers, 0-based; exit 0 is the embedding, which "low" leaves out where embeddings are tied.
        normed: whether exits go through the final norm of the model.
        beta: plausibility cut, see `LogitsMixer`.
    """

    weight: float = 1.0
    exits: str | tuple[int, ...] = "low"
    normed: bool = False

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits of an early layer",
        where="every step",
        forwards=1.0,
        provenance="released code",
        paper="2309.03883",
    )
    identity_parameters: ClassVar = {"weight": 0, "beta": 0}
    search_space: ClassVar = {"weight": Between(0.25, 1), "exits": OneOf(("low", "high"))}
    needs_image: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("weight", self.weight, 0, 100)
        if isinstance(self.exits, str):
            check_choice("exits", self.exits, ("low", "high"))
        else:
            object.__setattr__(self, "exits", exit_indices(self.exits))
        check_flag("normed", self.normed)

    @property
    def needs_final_norm(self) -> bool:
        return self.normed

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        exits = self.exits
        if isinstance(exits, str):
            exits = candidates(exits, depth, tied=getattr(config, "tie_word_embeddings", False))
            if not exits:
                raise ValueError(
                    f"exits={self.exits!r} leaves none in a model of {depth} layers; pass a list of layers"
                )
        check_depth(exits, depth)
        return dataclasses.replace(self, exits=exits)

    def exit_rows(self, context: DecodeContext) -> ExitRows:
        return ExitRows(() if self.weight == 0 else self._candidates, self.normed)

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if not branches:
            return logits
        contrast = contrast_layers(logits, torch.stack(list(branches), dim=1), self.weight)
        chosen: _Chosen = context.state.setdefault(
            (self, "chosen"), _Chosen(contrast.chosen.new_zeros(len(branches)))
        )
        chosen.counts.index_add_(0, contrast.chosen, context.alive.to(chosen.counts))
        return contrast.logits

    def report(self, context: DecodeContext, sums: Sums) -> None:
        chosen: _Chosen | None = context.state.get((self, "chosen"))
        if chosen is not None:
            counts = chosen.counts.tolist()
            for each, count in zip(self._candidates, counts, strict=True):
                sums.other_sizes[f"exit {each}"] = (float(count), sum(counts))

    @property
    def _candidates(self) -> tuple[int, ...]:
        assert isinstance(self.exits, tuple)
        return self.exits


@dataclass(eq=False)
class _Chosen:
    """How often each exit was taken, in all sequences that began together.

    Args:
        counts: `(exits,)` int64.
    """

    counts: Tensor


def candidates(name: str, depth: int, *, tied: bool) -> tuple[int, ...]:
    """The exits of a named set (arXiv 2309.03883).

    Args:
        name: "low" or "high".
        depth: layers of the model.
        tied: whether input and output embeddings are one, so that exit 0 only repeats the token.
    """
    if name == "low":
        layers = range(1 if tied else 0, _CANDIDATE_LAYERS if depth > _DEEP else math.ceil(depth / 2))
    else:
        layers = range(depth - _CANDIDATE_LAYERS if depth > _DEEP else math.ceil(depth / 2), depth)
    return tuple(layer for layer in layers if layer % 2 == 0)


class LayerContrast(NamedTuple):
    """Mixed logits of a step.

    Args:
        logits: `(batch, vocabulary)`.
        chosen: which of the exits was taken, `(batch,)` int64.
        divergences: of each exit from the last layer, `(batch, exits)`.
    """

    logits: Tensor
    chosen: Tensor
    divergences: Tensor


def contrast_layers(logits: Tensor, exits: Tensor, weight: float) -> LayerContrast:
    """Log-probabilities minus those of the exit that differs most; the lowest of several (arXiv 2309.03883).

    Args:
        logits: of the last layer, `(batch, vocabulary)`.
        exits: of the early exits, `(batch, exits, vocabulary)`.
        weight: 0 or more.
    """
    last, early = logits.log_softmax(dim=-1), exits.log_softmax(dim=-1)
    middle = early.exp().add_(last.exp()[:, None]).div_(2)
    # The mean of the divergences of the mixture from either; in place, as these tensors are the largest.
    terms = (early + last[:, None]).div_(-2).add_(middle.log()).mul_(middle).masked_fill_(middle == 0, 0.0)
    divergences = terms.sum(dim=-1)
    chosen = divergences.argmax(dim=1)
    row = torch.arange(len(chosen), device=chosen.device)
    mixed = torch.where(last == -torch.inf, last, last - weight * finite(early[row, chosen]))
    return LayerContrast(mixed, chosen, divergences)
