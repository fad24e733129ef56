"""Attention paths cut between image, question and answer (arXiv 2411.17491), and what that does to words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.methods.base import Method

RULES = ("image_to_generated", "image_to_query", "image_to_all_text", "query_to_generated")
"""Paths by name: whose columns are cut, for the rows of whom."""


def cut_paths(rule: str, layout: PromptLayout, prompt_length: int) -> tuple[Tensor, Tensor]:
    """Which rows lose which columns under a rule.

    The last prompt row predicts the first token of the answer, and counts as generated, too.

    Args:
        rule: one of `RULES`.
        layout: of prompt and answer, without padding.
        prompt_length: tokens of the prompt.

    Returns:
        Rows and columns, `(tokens,)` bool each.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {', '.join(RULES)}")
    image, text = layout.image_tokens[0], layout.after_last_image[0]
    places = torch.arange(len(image), device=image.device)
    query, generated = text & (places < prompt_length), text & (places >= prompt_length - 1)
    source, target = rule.split("_to_")
    columns = image if source == "image" else query
    rows = {"generated": generated, "query": query, "all_text": text}[target]
    return rows, columns  # text keeps itself, or the image, so that no row sees nothing


def cut(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scores before the softmax without the paths from some columns to some rows.

    Args:
        scores: `(..., rows, columns)`.
        rows: `(rows,)` bool.
        columns: `(columns,)` bool.
    """
    return scores.masked_fill(rows[:, None] & columns, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class Knockout(Method):
    """Cuts attention paths while a prompt and an answer to it are read in one pass.

    Args:
        rule: one of `RULES`.
        prompt_length: tokens of the prompt.
        layers: where; None: everywhere.
    """

    edits: ClassVar = False

    rule: str
    prompt_length: int
    layers: frozenset[int] | None = None
    _paths: list[tuple[Rows, Tensor]] = field(default_factory=list, init=False, compare=False, repr=False)

    def begin(self, context: DecodeContext) -> None:
        rows, columns = cut_paths(self.rule, context.layout, self.prompt_length)
        self._paths[:] = [(Rows.where(rows[None]), columns)]

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return self._paths[0][0] if self.layers is None or layer in self.layers else None

    def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
        columns = self._paths[0][1].to(scores.device)
        return cut(scores, torch.ones_like(columns[: scores.shape[-2]]), columns)


def windows(layers: int, window: int) -> Sequence[frozenset[int]]:
    """The layers of a window that slides over a decoder, one for each of its first layers."""
    return [frozenset(range(start, start + window)) for start in range(layers - window + 1)]
