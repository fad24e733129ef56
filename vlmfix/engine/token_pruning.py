"""Layers that lose tokens: what goes on, where it stands, and what the model adds to it on the way."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmfix.engine.caches import without_cache
from vlmfix.engine.capabilities import PrunesTokens
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.decoder_inputs import check_features, of_tokens
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.state import PruningStage
from vlmfix.errors import UnsupportedError


class PromptPruning:
    """Opens the stages of a run, and keeps the layers of a stage to its tokens.

    Args:
        decoder: the text decoder.
    """

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self._injected: tuple[Tensor, list[Tensor]] | None = None

    def take_over_injection(self, kwargs: dict[str, Any]) -> None:
        """Qwen3-VL adds visual features after its first layers, at positions that pruning moves."""
        check_features(kwargs, kwargs["inputs_embeds"], "pruned with the tokens")
        features, places = kwargs.get("deepstack_visual_embeds"), kwargs.get("visual_pos_masks")
        self._injected = None
        if features is None or places is None:
            return
        if len(features) >= len(self.decoder.layers):
            raise UnsupportedError(
                f"{type(self.decoder).__name__} injects visual features after its last layer, which pruning "
                "does not support"
            )
        self._injected = (places, features)
        kwargs["deepstack_visual_embeds"] = kwargs["visual_pos_masks"] = None

    def inject(self, context: DecodeContext, index: int, hidden_states: Tensor) -> Tensor:
        """Add the visual features of the layer before to the tokens that are still there."""
        if self._injected is None or not 0 < index <= len(self._injected[1]):
            return hidden_states
        places, features = self._injected
        batch, tokens = places.shape
        added = hidden_states.new_zeros(batch, tokens + context.auxiliary_length, hidden_states.shape[-1])
        added[:, :tokens][places.to(added.device)] = features[index - 1].to(added)
        return hidden_states + _present(added, context, context.layout_at(index - 1))

    def prune(
        self,
        context: DecodeContext,
        methods: Sequence[MethodHooks],
        index: int,
        layer: nn.Module,
        hidden_states: Tensor,
        kwargs: dict[str, Any],
    ) -> None:
        """Ask the methods what goes on to a layer, and open a stage if it is not everything."""
        for method in methods:
            if not isinstance(method, PrunesTokens):
                continue
            layout = context.layout_at(index)
            prompt = hidden_states[:, : layout.length]
            context.peek = functools.partial(self._peek, context, index, layer, prompt, kwargs)
            kept = method.prune(context, index, prompt)
            context.peek = None
            if kept is None:
                continue
            narrower, places = layout.select(kept.mask.to(layout.real_tokens.device))
            merged = None
            if kept.hidden_states is not None:
                merged = _gather(kept.hidden_states, places.to(prompt.device))
            context.pruning_stages.append(
                PruningStage(index, narrower, places, merged, renumbered=kept.renumbered)
            )

    def _peek(
        self,
        context: DecodeContext,
        index: int,
        layer: Any,
        prompt: Tensor,
        kwargs: dict[str, Any],
        rows: Rows,
    ) -> Tensor:
        """Weights of a layer before it runs: its projections alone, without the cache."""
        if not hasattr(layer, "input_layernorm"):
            raise UnsupportedError(
                f"{type(layer).__name__} has no input_layernorm, so that the attention of a layer is not "
                "known before it runs; use a pruning method that looks at a layer before, or at none"
            )
        stage = context.pruning_stage_at(index)
        embeddings = kwargs.get("position_embeddings")
        if stage is not None:
            embeddings = _kept(context, stage, embeddings)
        positions = embeddings and tuple(each[:, : prompt.shape[1]] for each in embeddings)
        context.engine.peeking = rows
        try:
            given = without_cache(kwargs) | {"position_ids": None}
            if positions is not None:
                given["position_embeddings"] = positions
            layer.self_attn(hidden_states=layer.input_layernorm(prompt), **given)
        finally:
            context.engine.peeking = None
        assert context.engine.peeked is not None
        return context.engine.peeked

    def set_positions(
        self,
        context: DecodeContext,
        stage: PruningStage,
        index: int,
        hidden_states: Tensor,
        kwargs: dict[str, Any],
    ) -> None:
        """Give a layer after a pruning the cosines and sines, and kinds, of the tokens that it reads."""
        is_first = stage.first_layer == index
        if context.reads_on(hidden_states.shape[1]):
            if not stage.renumbered:
                return
            if is_first:
                stage.position_embeddings = self._renumbered_step(context, stage, hidden_states, kwargs)
            kwargs["position_embeddings"] = stage.position_embeddings
        else:
            if is_first:
                stage.gathered.clear()
                if stage.renumbered:
                    stage.position_embeddings = self._renumbered(context, stage, hidden_states, kwargs)
            kwargs["position_embeddings"] = _kept(context, stage, kwargs.get("position_embeddings"))
            whole = context.layout.length + context.auxiliary_length
            for name, value in of_tokens(kwargs, hidden_states.new_empty(len(hidden_states), whole)).items():
                kwargs[name] = _present(value, context, stage.layout)
        kwargs["position_ids"] = None

    def kept(self, context: DecodeContext, index: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of arguments of a layer that have a value for each token, the values of those that it reads."""
        stage, whole = context.pruning_stage_at(index), context.layout.length + context.auxiliary_length
        if stage is None:
            return args
        return tuple(
            _present(value, context, stage.layout)
            if isinstance(value, Tensor) and value.shape[1:2] == (whole,)
            else value
            for value in args
        )

    def _renumbered_step(
        self, context: DecodeContext, stage: PruningStage, hidden_states: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the newest tokens, counted over the kept ones."""
        candidates = context.engine.candidates
        ahead: Any = context.step
        if candidates is not None:
            ahead = candidates.places(stage.layout.real_tokens.device)
        positions = stage.layout.counted_positions[:, -1:] + ahead
        own = self.decoder.rotary_emb(hidden_states, positions)
        rows = context.layout.batch_size  # branches stand after them, and nothing is pruned from these
        cos, sin = (
            torch.cat([new, old[rows:]]) for new, old in zip(own, kwargs["position_embeddings"], strict=True)
        )
        return cos, sin

    def _renumbered(
        self, context: DecodeContext, stage: PruningStage, hidden_states: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the kept tokens of the prompt and of what stands after it, counted anew."""
        if len(inspect.signature(self.decoder.rotary_emb.forward).parameters) > 2:
            raise UnsupportedError(
                f"layers of {type(self.decoder).__name__} turn positions in more than one way, which "
                "counting anew does not follow; leave positions as they are"
            )
        given = kwargs["position_embeddings"]
        positions = stage.layout.counted_positions
        generated = hidden_states.shape[1] - positions.shape[1] - context.auxiliary_length
        ahead = torch.arange(1, generated + 1, device=positions.device)
        positions = torch.cat([positions, positions[:, -1:] + ahead], dim=1)
        own = self.decoder.rotary_emb(hidden_states, positions)
        extra = given[0].shape[1] - context.auxiliary_length
        cos, sin = (
            torch.cat([new, old[:, extra:].expand(len(new), -1, -1)], dim=1)
            for new, old in zip(own, given, strict=True)
        )
        return cos, sin


def _kept(
    context: DecodeContext, stage: PruningStage, given: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """Of the cosines and sines given to a layer, those of the tokens of a stage; None: it turns nothing."""
    if given is None or stage.renumbered:
        return given and stage.position_embeddings
    for known, kept in stage.gathered:  # layers of one kind get the same
        if known is given:
            return kept
    cos, sin = (_present(each, context, stage.layout) for each in given)
    stage.gathered.append((given, (cos, sin)))
    return cos, sin


def leave_out(context: DecodeContext, stage: PruningStage, hidden_states: Tensor) -> Tensor:
    """The kept tokens of the prompt, and whatever stands after it."""
    before = context.layout_at(stage.first_layer - 1) if stage.first_layer else context.layout
    behind = hidden_states[:, before.length :]
    kept = _gather(hidden_states, stage.index.to(hidden_states.device))
    if stage.merged is not None:  # image tokens alone: text may be edited in a later pass
        kept = torch.where(
            stage.layout.image_tokens.to(kept.device)[..., None], stage.merged.to(kept.device), kept
        )
    return torch.cat([kept, behind], dim=1) if behind.shape[1] else kept


def _present(values: Tensor, context: DecodeContext, layout: PromptLayout) -> Tensor:
    """Of values over all tokens, `(batch or 1, tokens[, size])`, those of tokens that are still there."""
    if layout.positions is None:
        return values
    if values.ndim == 2:
        return _present(values[..., None], context, layout)[..., 0]
    values = values.expand(layout.batch_size, -1, -1)
    kept = _gather(values, layout.positions.to(values.device))
    return torch.cat([kept, values[:, context.layout.length :]], dim=1)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Tokens `(batch, kept)` of `(batch, tokens, size)`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
