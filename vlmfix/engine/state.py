"""State of a decoding run: what rides along with the prompts, and what is left of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from vlmfix.engine import rows_of_state
from vlmfix.engine.gating import GateState
from vlmfix.engine.layout import PromptLayout, Rows


@dataclass(eq=False)
class AuxiliaryPrompt:
    """A second prompt that is read after the first in the same prefill; neither sees the other.

    Args:
        inputs_embeds: `(batch, tokens, hidden)`.
        real_tokens: everything but padding, which is on the left, `(batch, tokens)` bool.
        seen: see `PromptLayout`.
    """

    inputs_embeds: Tensor
    real_tokens: Tensor
    seen: Tensor | None = None

    @cached_property
    def layout(self) -> PromptLayout:
        """Its padding, in the form in which attention wants it."""
        return PromptLayout(torch.zeros_like(self.real_tokens), self.real_tokens, seen=self.seen)


class PruneResult(NamedTuple):
    """What a pruning keeps of the tokens that are about to enter a layer.

    Args:
        mask: `(batch, tokens)` bool; samples may keep different numbers.
        hidden_states: what the image tokens are from now on, where some were merged into others, `(batch,
            tokens, hidden)`; None: what they are.
        renumbered: whether positions count anew over the kept tokens.
    """

    mask: Tensor
    hidden_states: Tensor | None = None
    renumbered: bool = False


@dataclass(eq=False)
class PruningStage:
    """The tokens of the prompt from one layer on, after a pruning.

    Args:
        first_layer: the first layer that they alone enter.
        layout: of the tokens that were kept.
        index: where they stand among those of the layer before, `(batch, kept tokens)`.
        merged: what took the place of the hidden states of image tokens, where some were merged.
        renumbered: whether their positions count anew from 0.
        position_embeddings: cosines and sines of tokens that count anew.
        gathered: cosines and sines given to layers, and of these those of the kept tokens; in the pass that
            reads the prompt.
    """

    first_layer: int
    layout: PromptLayout
    index: Tensor
    merged: Tensor | None = None
    renumbered: bool = False
    position_embeddings: tuple[Tensor, Tensor] | None = None
    gathered: list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = field(default_factory=list)


@dataclass(eq=False)
class Selection:
    """The tokens that a branch sees in its deeper layers, chosen in every step by its own attention.

    What was chosen in a step holds for all tokens that are read in it; they keep what they became. A token
    that comes before all chosen ones sees itself alone.

    Args:
        layer: the first layer in which only chosen tokens are seen.
        choose: from the attention of the newest token in the layer before, averaged over the heads, and the
            tokens that it sees at all, to those that are chosen, `(prompts, newest, keys)` each. Without a
            cache, the newest tokens of earlier steps come along; else there is one.
        seen: what the tokens of this step see from `layer` on, `(prompts, 1, queries, keys)` bool.
    """

    layer: int
    choose: Callable[[Tensor, Tensor], Tensor]
    seen: Tensor | None = None

    def update(self, weights: Tensor, visible: Tensor) -> None:
        """Choose for a step.

        Args:
            weights: attention of the newest tokens, `(prompts, heads, newest, keys)`.
            visible: what the tokens of this step see, `(prompts or 1, queries, keys)` bool.
        """
        (queries, keys), newest = visible.shape[-2:], weights.shape[2]
        chosen = self.choose(weights.mean(dim=1), visible[:, -newest:])
        step = (torch.arange(queries, device=weights.device) - (queries - newest)).clamp_min(0)
        seen = visible & chosen[:, step]
        itself = torch.ones_like(visible[0]).tril(keys - queries).triu(keys - queries)
        self.seen = (seen | (itself & ~seen.any(dim=-1, keepdim=True)))[:, None]


@dataclass(eq=False)
class Branch:
    """A degraded or enriched form of each prompt, with a cache of its own; neither sees the other.

    Args:
        inputs_embeds: `(prompts, tokens, hidden)`, image features merged.
        real_tokens: everything but padding, which is on the left, `(prompts, tokens)` bool.
        position_ids: of the rotary embedding, `(prompts, tokens)` or `(axes, prompts, tokens)`; None: counted
            from the first real token.
        decoder_inputs: what else the text decoder wants, such as injected visual features.
        fused: whether it is decoded in one pass with the prompts, or in one of its own.
        selection: which tokens its deeper layers see; None: all.
        edit_weights: what its weights become, from the number of a layer, the places of some rows, `(rows,)`,
            their weights, `(prompts, heads, rows, keys)` float32, and what they see, `(prompts or 1, rows,
            keys)` bool; None: what they are.
        seen: see `PromptLayout`.
        late: changes it once the prompts have been read, where it depends on what was seen there; its number
            of tokens stays.
        watch: where tokens are written after it, sees the weights of each in each layer: layer, `(prompts,
            heads, keys)` float32, and which prompts have not ended, `(prompts,)` bool.
        cache: None without one.
        alive: where tokens are written after it, prompts that have not ended, `(prompts,)` bool.
    """

    inputs_embeds: Tensor
    real_tokens: Tensor
    position_ids: Tensor | None = None
    decoder_inputs: Mapping[str, Any] = field(default_factory=dict)
    fused: bool = True
    selection: Selection | None = None
    edit_weights: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None
    seen: Tensor | None = None
    late: Callable[[Branch], None] | None = None
    watch: Callable[[int, Tensor, Tensor], None] | None = None
    cache: DynamicCache | None = None
    alive: Tensor | None = None

    @cached_property
    def layout(self) -> PromptLayout:
        """Its padding, in the form in which attention wants it."""
        return PromptLayout(torch.zeros_like(self.real_tokens), self.real_tokens, seen=self.seen)

    def positions(self, like: Tensor, generated: int, first: Tensor | int = 0) -> Tensor:
        """Positions of its tokens and of so many generated ones, with the axes of `like`.

        Args:
            first: position of the first token, `(prompts, 1)`, or of all.
        """
        counted = self.layout.counted_positions
        own = (
            counted + torch.as_tensor(first).to(counted.device)
            if self.position_ids is None
            else self.position_ids
        )
        own = own.to(like.device)
        own = own.expand(*like.shape[:-2], len(self.real_tokens), own.shape[-1])
        ahead = torch.arange(1, generated + 1, device=own.device)
        return torch.cat([own, own[..., -1:] + ahead], dim=-1)

    @property
    def comes_apart(self) -> bool:
        """Whether what it has of each prompt can be told, once it has been read."""
        return self.cache is not None and self.selection is None and self.edit_weights is None

    def kept(self, rows: Tensor) -> Branch:
        """The branch of some of the prompts, read already, with its cache as it is."""
        return Branch(
            self.inputs_embeds[rows],
            self.real_tokens[rows],
            _of_batch(self.position_ids, rows, len(self.real_tokens), -2),
            fused=self.fused,
            seen=None if self.seen is None else self.seen[rows],
            cache=self.cache,
        )

    def with_others(self, other: Branch) -> Branch:
        """The branch of these prompts and of others, without its cache; both were asked for by `kept`.

        Raises:
            ValueError: they do not go together.
        """
        batches = len(self.real_tokens), len(other.real_tokens)
        if self.fused != other.fused:
            raise ValueError("the branch of one run is read with the prompts, and that of the other is not")
        return Branch(
            rows_of_state.joined(self.inputs_embeds, other.inputs_embeds, batches),
            rows_of_state.joined(self.real_tokens, other.real_tokens, batches),
            rows_of_state.joined_by_row(self.position_ids, other.position_ids, batches, -2),
            fused=self.fused,
            seen=rows_of_state.joined_by_row(self.seen, other.seen, batches),
            cache=self.cache,
        )


@dataclass(eq=False)
class Prefix:
    """The beginnings of the prompts of a batch, each one once.

    Args:
        layout: of the beginnings, `(beginnings, tokens)`; left-padded.
        first_rows: the first prompt with each beginning, `(beginnings,)` int64.
        owner: which beginning each prompt has, `(batch,)` int64.
        places: where the first tokens of each prompt stand in its beginning, `(batch, columns)` int64;
            arbitrary at padding.
        hidden_states: what entered each layer, `(beginnings, tokens, hidden)`; empty if no method looks.
        is_read: whether the pass over the beginnings is over.
    """

    layout: PromptLayout
    first_rows: Tensor
    owner: Tensor
    places: Tensor
    hidden_states: list[Tensor] = field(default_factory=list)
    is_read: bool = False

    def spread(self, values: Tensor) -> Tensor:
        """Of `(beginnings, tokens, ...)` values, those of the first columns of each prompt, `(batch, columns,
        ...)`."""
        owner, places = self.owner.to(values.device), self.places.to(values.device)
        return values[owner[:, None], places]

    def spread_heads(self, values: Tensor) -> Tensor:
        """Of `(beginnings, heads, tokens, head_dim)` keys or values, those of the first columns of each
        prompt, `(batch, heads, columns, head_dim)`."""
        _, heads, tokens, size = values.shape
        owner, places = self.owner.to(values.device), self.places.to(values.device)
        firsts = (owner[:, None] * heads + torch.arange(heads, device=owner.device)) * tokens
        index = firsts[:, :, None] + places[:, None]
        # By whole rows, which takes a third of the time that an index for each dimension does on a CPU.
        return values.reshape(-1, size).index_select(0, index.flatten()).view(*index.shape, size)


@dataclass(eq=False)
class CandidateBlock:
    """Tokens after a prompt that one pass reads on its cache.

    Args:
        before: number of tokens between the prompt and these.
        size: number of these.
        alternatives: whether each may stand in the place of the others, which it does not see; if not, they
            follow each other.
    """

    before: int
    size: int
    alternatives: bool = False
    _masks: dict[PromptLayout, Tensor] = field(default_factory=dict)

    def places(self, device: torch.device) -> Tensor:
        """How far after the last token of the prompt each stands, `(size,)`."""
        steps = torch.arange(self.size, device=device)
        return self.before + 1 + (torch.zeros_like(steps) if self.alternatives else steps)

    def attention_mask(self, layout: PromptLayout, device: torch.device) -> Tensor | None:
        """What they see, `(batch or 1, 1, size, keys)` bool; None: everything.

        Args:
            layout: of the tokens of the prompt that are present.
        """
        if self.size == 1:
            return layout.attention_mask(1, layout.length + self.before + 1, device)
        if layout not in self._masks:  # one serves all layers
            own = torch.ones(self.size, self.size, dtype=torch.bool, device=device)
            own = own.tril().triu() if self.alternatives else own.tril()
            behind = torch.cat([own.new_ones(self.size, self.before), own], dim=1)[None, None]
            prompt = layout.real_tokens if layout.has_padding else layout.real_tokens[:1]
            prompt = prompt.to(device)[:, None, None].expand(-1, 1, self.size, -1)
            self._masks[layout] = torch.cat([prompt, behind.expand(len(prompt), -1, -1, -1)], dim=-1)
        return self._masks[layout].to(device)


class Encoded(NamedTuple):
    """What the vision encoder made of one image or video, for the language model.

    Args:
        features: image tokens, `(tokens, hidden)`.
        injected: what Qwen3-VL adds after its first layers, one `(tokens, hidden)` a layer.
    """

    features: Tensor
    injected: list[Tensor]


@dataclass(eq=False)
class EngineState:
    """What the engine alone knows of a run.

    Args:
        branches: what is decoded beside the prompts, of the method that owns the logits.
        active_branch: the branch that the decoder reads alone.
        tapped_layers: layers of which `DecodeContext.early_exits` is kept.
        wants_last_logits: whether the model was asked for logits of the newest position alone in this pass.
        followed: the cache of the prompts, where the caches of branches follow its beams.
        candidates: the tokens that the pass reads after the prompt, where these are not simply the next ones.
        cache: of the prompts, once they have been read; None: without one.
        static: the static cache that a call was given; None: its cache grows.
        end_tokens: that end an answer of the model if nobody says otherwise, `(tokens,)`; None: none does.
        next_position: position of the first generated token, `(batch or 1,)`, or `(axes, batch)` for M-RoPE.
        first_position: position of the first token of the prompts, `(batch, 1)`, or one for all.
        planned: tokens that a `generate` call lets follow at most; 1: it does not say.
        encoded: what `generate` made of the images before the pass, by kind; None: nothing.
        prefix: what prompts of the batch begin with, where it was read once for all.
        peeking: the rows that `DecodeContext.peek` is computing.
        peeked: what it computed.
        gates: of the methods that have one.
        first_state: what the model turns into its first logits, `(batch, hidden)`, to be compared with what
            its output head makes of it, where methods use that by themselves.
        read: tokens of the step before, `(batch, tokens)`; None in the prefill, and with a cache.
        stock_rows: how many rows of this pass the stock model would read, too; in a pass over prompts, all.
    """

    branches: list[Branch] = field(default_factory=list)
    active_branch: Branch | None = None
    tapped_layers: frozenset[int] = frozenset()
    wants_last_logits: bool = False
    followed: DynamicCache | None = None
    candidates: CandidateBlock | None = None
    cache: Any = None
    static: StaticCache | None = None
    end_tokens: Tensor | None = None
    next_position: Tensor | None = None
    first_position: Tensor | int = 0
    planned: int = 1
    encoded: Mapping[str, Any] | None = None
    prefix: Prefix | None = None
    peeking: Rows | None = None
    peeked: Tensor | None = None
    gates: GateState = field(default_factory=GateState)
    first_state: Tensor | None = None
    read: Tensor | None = None
    stock_rows: int = sys.maxsize

    def kept(self, rows: Tensor, batch: int) -> EngineState:
        """What is known of some of the sequences of a batch, between two steps."""
        first = self.first_position
        return replace(
            self,
            branches=[branch.kept(rows) for branch in self.branches],
            next_position=_of_batch(self.next_position, rows, batch, -1),
            first_position=first[rows] if isinstance(first, Tensor) else first,
            gates=self.gates.kept(rows),
        )

    def with_others(self, other: EngineState, batches: tuple[int, int]) -> EngineState:
        """What is known of the sequences of two runs, the caches of which are joined by themselves.

        Raises:
            ValueError: the runs do not go together.
        """
        if len(self.branches) != len(other.branches) or self.tapped_layers != other.tapped_layers:
            raise ValueError("the two runs have other branches or early exits")
        firsts = self.first_position, other.first_position
        return replace(
            self,
            branches=[one.with_others(two) for one, two in zip(self.branches, other.branches, strict=True)],
            next_position=rows_of_state.joined_by_row(self.next_position, other.next_position, batches, -1),
            first_position=rows_of_state.joined(*firsts, batches),
            gates=self.gates.with_others(other.gates, batches),
            encoded=None,
        )


def _of_batch(values: Tensor | None, rows: Tensor, batch: int, dim: int) -> Tensor | None:
    """Of values that one dimension has for each of the batch, or one for all, those of some rows."""
    if values is None or values.shape[dim] != batch:
        return values
    return values.index_select(dim, rows.to(values.device))
