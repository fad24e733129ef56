"""MMTok: image tokens that together cover the question and the image stay."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ReadsVisionAttention
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import CountedPruning
from vlmfix.methods.pruning.encoded_blocks import shown_blocks
from vlmfix.methods.pruning.question_words import question_embeddings
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile

_LOWEST_TEMPERATURE = 1e-3


@register_method("mmtok")
@dataclass(frozen=True, kw_only=True)
class MMTok(CountedPruning, ReadsVisionAttention):
    """MMTok (arXiv 2508.18264): image tokens that cover the words of the question and all other image tokens.

    Acts on the image features before the language model. A chosen token covers a word as far as it is more
    like it than other tokens are, in the embeddings of the language model, and an image token likewise, in
    the features of the vision encoder; a greedy search adds the token that covers most of what is left.
    Images, tiles and frames of videos are searched one by one and share the budget in proportion to their
    tokens; newline tokens leave.

    A reconstruction in what the question is: for LLaVA all words but function words, by a list of this
    library, and sentences that ask for a form of answer; for models with positions in three axes (Qwen-VL)
    all words, without the "Question:" that the released code writes before them. The second model that
    rewrites the question is not part of it.

    Args:
        kept_tokens: image tokens that stay, 1 or more; prompts with no more of them keep them all. None
            leaves the model as it is.
        keep_ratio: in the place of `kept_tokens`, a share of the image tokens of each prompt, in [0, 1],
            rounded down, at least one token; the released code takes 0.2 for Qwen-VL. None: a number counts.
        alpha: weight of covering the image against covering the question, in [0, 1000].
        tau_text: temperature over the tokens that may cover a word, in [0.001, 100]; None: 0.01 for models
            with positions in three axes, 0.02 for others.
        tau_image: the same for image tokens.
    """

    keep_ratio: float | None = None
    alpha: float = 0.5
    tau_text: float | None = None
    tau_image: float = 0.2

    info = MethodInfo(
        stage="pruning",
        changes="image tokens leave that are not needed to cover question and image",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="reconstruction",
        paper="2508.18264",
        decoding="greedy, sampling, beams, batches, with the processor",
        families="with a CLIP encoder and a projector, or an encoder that merges patches (Qwen-VL, GLM-4V)",
    )
    identity_parameters: ClassVar = {"kept_tokens": None, "keep_ratio": None}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_ratio is not None:
            check_range("keep_ratio", self.keep_ratio, 0, 1)
        check_range("alpha", self.alpha, 0, 1000)
        for name in ("tau_text", "tau_image"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), _LOWEST_TEMPERATURE, 100)

    @property
    def needs_processor(self) -> bool:
        return not self.is_identity

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        resolved = super().resolve(config, profile)
        if self.tau_text is not None:
            return resolved
        return dataclasses.replace(resolved, tau_text=0.01 if _has_three_axes(config) else 0.02)

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer != 0:
            return None
        assert context.config is not None
        assert self.tau_text is not None
        image_tokens = context.layout.image_tokens
        counts = image_tokens.sum(dim=1, keepdim=True).tolist()
        whole = torch.tensor([[self._budget(count) >= count] for [count] in counts])
        mask = (~image_tokens | whole.to(image_tokens.device)).to(hidden_states.device)
        asked = question_embeddings(context, hidden_states, content_only=not _has_three_axes(context.config))
        saturated = []
        for block in shown_blocks(context, self._budget):
            own = block.positions.to(hidden_states.device)
            tokens, words = hidden_states[block.sample, own], asked[block.sample]
            covers = torch.cat(
                [
                    coverage(words, tokens, self.tau_text),
                    self.alpha * coverage(block.states.to(tokens.device), None, self.tau_image),
                ]
            )
            picks, gains = cover(covers, block.share)
            mask[block.sample, own[picks]] = True
            saturated.append((gains == 0).any())
        if saturated:
            context.state[self, "saturated"] = torch.stack(saturated)[None]  # of all images
        return mask

    def report(self, context: DecodeContext, sums: Sums) -> None:
        super().report(context, sums)
        saturated = context.state.get((self, "saturated"))
        if saturated is not None:
            sums.details["saturated"] = float(saturated.float().mean())

    def _budget(self, tokens: int) -> int:
        """How many of the image tokens of a prompt stay."""
        if self.keep_ratio is not None:
            return max(1, int(self.keep_ratio * tokens))
        return tokens if self.kept_tokens is None else self.kept_tokens


def coverage(rows: Tensor, columns: Tensor | None, temperature: float) -> Tensor:
    """How far each token covers each row (arXiv 2508.18264): each row is as much as any other, all are 1.

    Args:
        rows: what is to be covered, `(rows, features)`.
        columns: what may cover it, `(tokens, features)`; None: the rows.
        temperature: of the softmax over the tokens.

    Returns:
        `(rows, tokens)` float32.
    """
    unit = nn.functional.normalize(rows.float(), dim=-1)
    others = unit if columns is None else nn.functional.normalize(columns.float(), dim=-1)
    return (unit @ others.T / temperature).softmax(dim=-1) / max(1, len(rows))


def cover(coverage: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens that cover most: each row by its best one (arXiv 2508.18264).

    Args:
        coverage: `(rows, tokens)`.
        count: how many to pick, from 0 to the number of tokens.

    Returns:
        Indices in the order of the picks, `(count,)` int64, and what each adds, `(count,)`; the first of
        equal ones is picked, also where nothing is left to add.
    """
    covered = coverage.new_zeros(len(coverage), 1)
    chosen = torch.zeros(coverage.shape[1], dtype=torch.bool, device=coverage.device)
    picks, gains = chosen.new_empty(count, dtype=torch.long), coverage.new_empty(count)
    for number in range(count):
        added = (coverage - covered).clamp_min(0).sum(dim=0)
        pick = added.masked_fill(chosen, -1.0).argmax()
        covered = torch.maximum(covered, coverage[:, pick, None])
        chosen[pick] = True
        picks[number], gains[number] = pick, added[pick]
    return picks, gains


def _has_three_axes(config: PreTrainedConfig) -> bool:
    """Whether the language model counts positions in three axes, as Qwen-VL with its dynamic resolution."""
    return "mrope_section" in (getattr(config.get_text_config(), "rope_parameters", None) or {})
