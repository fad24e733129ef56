"""Gates at work in a run: what they see of a step, and the openings that edits get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmfix.engine.gate_formulas import blend
from vlmfix.engine.gates import ImageMass, Seen


@dataclass(eq=False)
class GateState:
    """The gates of a run.

    Args:
        methods: those that have a gate.
        mass_layer: the layer in which the attention to the image is measured; None: nobody asks.
        image_mass: what was measured in this step, `(batch,)`.
        tokens: the newest token that was read, `(batch,)`; None: it is not known, for embeddings.
    """

    methods: tuple[Any, ...] = ()
    mass_layer: int | None = None
    image_mass: Tensor | None = None
    tokens: Tensor | None = None
    _used: dict[Any, Tensor] = field(default_factory=dict)
    _noted: list[tuple[Any, Tensor]] = field(default_factory=list)
    _coming: dict[Any, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, methods: Iterable[Any], layers: Sequence[int], prompt_ids: Tensor | None) -> GateState:
        """The gates of these methods, before the first step.

        Args:
            methods: all that act.
            layers: of the decoder that attend.
            prompt_ids: `(batch, prompt)`; None: not known.
        """
        gated = tuple(method for method in methods if method.gate is not None)
        looks = any(isinstance(method.gate, ImageMass) for method in gated)
        return cls(
            gated,
            mass_layer=layers[len(layers) // 2] if looks else None,
            tokens=None if prompt_ids is None else prompt_ids[:, -1],
        )

    @property
    def follows_beams(self) -> bool:
        """Whether anything is kept from one step to the next."""
        return any(method.edits_attention for method in self.methods)

    def follow(self, sources: Tensor) -> None:
        """Let each sequence go on from another one, `(batch,)` int64."""
        self._coming = {
            method: opening.index_select(0, sources.to(opening.device))
            for method, opening in self._coming.items()
        }

    def of_attention(self, method: Any, like: Tensor) -> Tensor:
        """The opening for edits of attention in this step, from what was seen in the step before, `(batch,)`.

        Args:
            like: a tensor of the batch, on the device of the layer.
        """
        if method not in self._used:
            coming = self._coming.get(method)
            first = torch.full(like.shape[:1], float(method.gate.first), device=like.device)
            self._used[method] = first if coming is None else coming
            self.note(method, self._used[method])
        return self._used[method].to(like.device)

    def passing(self, method: Any, edited: Tensor) -> Tensor:
        """Of the sites that a method edited in the newest row, those of sequences whose gate is open.

        Args:
            edited: `(batch, ...)`, numbers or bool.
        """
        if method not in self.methods:
            return edited
        is_open = self.of_attention(method, edited) > 0
        return edited * is_open.view(-1, *[1] * (edited.ndim - 1))

    def note(self, method: Any, opening: Tensor) -> None:
        """Remember an opening that an edit of this step got, `(batch,)`."""
        self._noted.append((method, opening))

    def end_step(self) -> list[tuple[Any, Tensor]]:
        """The openings that the edits of this step got, by method, `(batch, 1)` each."""
        noted, self._noted, self._used = self._noted, [], {}
        return [(method, opening[:, None]) for method, opening in noted]

    def see(self, logits: Tensor, branches: Sequence[Tensor], step: int) -> Mapping[Any, Tensor]:
        """The openings for edits of logits in this step, which are those for attention in the next one.

        Args:
            logits: of the model, `(batch, vocabulary)` float32.
            branches: in the same form.
            step: of these logits.
        """
        tokens = logits.new_zeros(len(logits), dtype=torch.int64) if self.tokens is None else self.tokens
        seen = Seen(logits, branches, self.image_mass, tokens, step)
        self._coming = {method: method.gate.opening(seen) for method in self.methods}
        return self._coming


def gated_rows(before: Tensor, after: Tensor, opening: Tensor, is_newest: Tensor | None) -> Tensor:
    """Rows of attention under a gate: the newest is blended, rows of the prompt before it are `after`.

    Args:
        before: what an edit got, `(batch, heads, rows, keys)`.
        after: what it made of it.
        opening: `(batch,)`.
        is_newest: whether the last of the rows is the newest token; None: it is.
    """
    if is_newest is not None:
        opening = torch.where(is_newest, opening, 1.0)
    newest = blend(before[:, :, -1:], after[:, :, -1:], opening[:, None, None, None])
    return newest if after.shape[2] == 1 else torch.cat([after[:, :, :-1], newest], dim=2)


def gated_heads(before: Tensor, after: Tensor, opening: Tensor, newest: int) -> Tensor:
    """Outputs of heads under a gate: the newest row is blended, all others are `after`.

    Args:
        before: what an edit got, `(batch, queries, heads, head_dim)`.
        after: what it made of it.
        opening: `(batch,)`.
        newest: which of the queries is the newest token of the prompts.
    """
    rows = slice(newest, newest + 1)
    row = blend(before[:, rows], after[:, rows], opening[:, None, None, None])
    return torch.cat([after[:, :newest], row, after[:, newest + 1 :]], dim=1)
