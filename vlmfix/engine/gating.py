"""Gates at work in a run: what they see of a step, and the openings that edits get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlmfix.engine import rows_of_state
from vlmfix.engine.gate_formulas import blend
from vlmfix.engine.gates import ImageMass, Seen
from vlmfix.errors import UnsupportedError
from vlmfix.models.reasoning_marks import ReasoningMarks

BOTH, REASONING, ANSWER = PARTS = ("both", "reasoning", "answer")
"""Parts of what a model writes, on which methods act."""


@dataclass(eq=False)
class GateState:
    """The gates of a run, and the parts of answers that methods act on (`Method.act_on`).

    Args:
        methods: those that have a gate, or act on a part alone.
        mass_layer: the layer in which the attention to the image is measured; None: nobody asks.
        image_mass: what was measured in this step, `(batch,)`.
        tokens: the newest token that was read, `(batch,)`; None: it is not known, for embeddings.
        marks: ids of the tokens that open and close a reasoning part; None: no method asks.
        in_answer: sequences whose next token belongs to the answer, and not to the reasoning before it,
            `(batch,)` bool; None: no method asks.
    """

    methods: tuple[Any, ...] = ()
    mass_layer: int | None = None
    image_mass: Tensor | None = None
    tokens: Tensor | None = None
    marks: tuple[int, int] | None = None
    in_answer: Tensor | None = None
    _used: dict[Any, Tensor] = field(default_factory=dict)
    _noted: list[tuple[Any, Tensor]] = field(default_factory=list)
    _coming: dict[Any, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, methods: Iterable[Any], layers: Sequence[int], prompt_ids: Tensor | None, processor: Any
    ) -> GateState:
        """The gates of these methods, before the first step.

        Args:
            methods: all that act.
            layers: of the decoder that attend.
            prompt_ids: `(batch, prompt)`; None: not known.
            processor: of the model, for methods that act on a part of the answer.

        Raises:
            UnsupportedError: such a method cannot know where the reasoning ends.
        """
        gated = tuple(method for method in methods if method.is_gated)
        looks = any(isinstance(method.gate, ImageMass) for method in gated)
        state = cls(
            gated,
            mass_layer=layers[len(layers) // 2] if looks else None,
            tokens=None if prompt_ids is None else prompt_ids[:, -1],
        )
        partial = next((method for method in gated if method.act_on != BOTH), None)
        if partial is not None:
            marks = reasoning_marks(partial, processor)
            if prompt_ids is None:
                raise UnsupportedError(
                    f"the prompt is given as inputs_embeds alone, and whether it opens the reasoning that "
                    f"{type(partial).__name__} with act_on={partial.act_on!r} looks for is not known; pass "
                    "its input_ids to generate as well"
                )
            opened = [marks.is_opened_by(row, processor) for row in prompt_ids.tolist()]
            state.marks = marks.token_ids(processor)
            state.in_answer = ~torch.tensor(opened, device=prompt_ids.device)
        return state

    @property
    def follows_beams(self) -> bool:
        """Whether anything is kept from one step to the next."""
        return self.in_answer is not None or any(method.edits_attention for method in self.methods)

    def read(self, tokens: Tensor | None, step: int) -> None:
        """Learn the newest token of each sequence, `(batch,)`; a reasoning part may begin with the first."""
        self.tokens = tokens
        if self.marks is None or tokens is None:
            return
        begin, end = self.marks
        assert self.in_answer is not None
        in_answer = self.in_answer.to(tokens.device)
        if step == 1:
            in_answer = in_answer & (tokens != begin)
        self.in_answer = in_answer | (tokens == end)

    def follow(self, sources: Tensor) -> None:
        """Let each sequence go on from another one, `(batch,)` int64."""
        self._coming = {
            method: opening.index_select(0, sources.to(opening.device))
            for method, opening in self._coming.items()
        }
        if self.in_answer is not None:
            self.in_answer = self.in_answer.index_select(0, sources.to(self.in_answer.device))

    def kept(self, rows: Tensor) -> GateState:
        """The gates of some of the sequences, between two steps."""
        kept = replace(self)
        kept.follow(rows)
        return kept

    def with_others(self, other: GateState, batches: tuple[int, int]) -> GateState:
        """The gates of these sequences and of others, between two steps.

        Raises:
            ValueError: what was seen of them does not go together.
        """
        found = replace(self)
        found._coming = rows_of_state.joined(self._coming, other._coming, batches)
        found.in_answer = rows_of_state.joined_by_row(self.in_answer, other.in_answer, batches)
        return found

    def of_attention(self, method: Any, like: Tensor) -> Tensor:
        """The opening for edits of attention in this step, from what was seen in the step before, `(batch,)`.

        Args:
            like: a tensor of the batch, on the device of the layer.
        """
        if method not in self._used:
            opening = self._coming.get(method)
            if opening is None:
                first = 1.0 if method.gate is None else float(method.gate.first)
                opening = torch.full(like.shape[:1], first, device=like.device)
            self._used[method] = opening * self.of_part(method, opening)
            self.note(method, self._used[method])
        return self._used[method].to(like.device)

    def of_part(self, method: Any, like: Tensor) -> Tensor | float:
        """1 for sequences that are in the part on which a method acts, 0 for others, `(batch,)` float32; of a
        method that acts on both, 1.

        Args:
            like: on the device that is wanted.
        """
        if method.act_on == BOTH:
            return 1.0
        assert self.in_answer is not None
        is_there = self.in_answer if method.act_on == ANSWER else ~self.in_answer
        return is_there.to(like.device, torch.float32)

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
        self._coming = {
            method: method.gate.opening(seen) for method in self.methods if method.gate is not None
        }
        whole = torch.ones_like(logits[:, 0])
        return {
            method: self._coming.get(method, whole) * self.of_part(method, logits) for method in self.methods
        }


def gated_rows(
    before: Tensor, after: Tensor, opening: Tensor, is_newest: Tensor | None, part: Tensor | float = 1.0
) -> Tensor:
    """Rows of attention under a gate: the newest is blended, rows of the prompt before it are `after`, where
    the method acts on the part to which the pass belongs.

    Args:
        before: what an edit got, `(batch, heads, rows, keys)`.
        after: what it made of it.
        opening: `(batch,)`.
        is_newest: whether the last of the rows is the newest token; None: it is.
        part: see `GateState.of_part`.
    """
    if is_newest is not None:
        opening = torch.where(is_newest, opening, part)
    newest = blend(before[:, :, -1:], after[:, :, -1:], opening[:, None, None, None])
    if after.shape[2] == 1:
        return newest
    return torch.cat([_of_part(before[:, :, :-1], after[:, :, :-1], part), newest], dim=2)


def gated_heads(
    before: Tensor, after: Tensor, opening: Tensor, newest: int, part: Tensor | float = 1.0
) -> Tensor:
    """Outputs of heads under a gate: the newest row is blended, all others are `after`, those of the prompt
    where the method acts on the part to which the pass belongs.

    Args:
        before: what an edit got, `(batch, queries, heads, head_dim)`.
        after: what it made of it.
        opening: `(batch,)`.
        newest: which of the queries is the newest token of the prompts.
        part: see `GateState.of_part`.
    """
    rows = slice(newest, newest + 1)
    row = blend(before[:, rows], after[:, rows], opening[:, None, None, None])
    earlier = _of_part(before[:, :newest], after[:, :newest], part)
    return torch.cat([earlier, row, after[:, newest + 1 :]], dim=1)


def reasoning_marks(method: Any, processor: Any) -> ReasoningMarks:
    """The marks by which a method that acts on a part of the answer knows where the reasoning ends.

    Raises:
        UnsupportedError: there is no processor, or its tokenizer has no such marks.
    """
    name = f"{type(method).__name__} with act_on={method.act_on!r}"
    if processor is None:
        raise UnsupportedError(
            f"{name} needs the processor, to know where the reasoning ends: 'with method(model, "
            "processor):', or vlmfix.generate"
        )
    marks = ReasoningMarks.of(processor)
    if marks is None:
        raise UnsupportedError(
            f"{name} acts on a part of answers with reasoning, and neither the tokenizer nor the chat "
            "template of this checkpoint has marks of it, such as <think>; leave act_on out"
        )
    marks.token_ids(processor)
    return marks


def _of_part(before: Tensor, after: Tensor, part: Tensor | float) -> Tensor:
    if isinstance(part, float):
        return after
    return torch.where(part.to(after.device)[:, None, None, None] > 0, after, before)
