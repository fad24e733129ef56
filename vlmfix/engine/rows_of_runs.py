"""Runs cut down to some of their sequences, and put together with those of another run."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from vlmfix.engine.context import Began, DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.rows_of_state import joined, joined_by_row, may_be_by_sequence
from vlmfix.engine.state import PruningStage

# What is of the model or the call, and not of single sequences.
_SHARED = ("image_arguments", "encode_images", "embed_tokens", "encoder", "vision_encoder")


def kept(context: DecodeContext, rows: Tensor) -> DecodeContext:
    """The run of the sequences that go on, all of which is theirs, between two steps.

    Args:
        context: of all of them.
        rows: `(sequences,)` int64 on the CPU.

    Raises:
        ValueError: a method keeps what does not tell the sequences apart.
    """
    batch = context.layout.batch_size
    if any(may_be_by_sequence(value, batch) for value in context.state.values()):
        raise ValueError("a method keeps a list in context.state, which may have one item a sequence")
    found = context.part(rows)
    found.memory = {key: value[rows] for key, value in context.memory.items()}
    found.alive, found.engine = context.alive[rows], context.engine.kept(rows, batch)
    for name in _SHARED:
        setattr(found, name, getattr(context, name))
    settle(context)
    found.began = tuple(part for each in _began(context) if (part := _kept(each, rows, batch)) is not None)
    return found


def together(first: DecodeContext, second: DecodeContext) -> DecodeContext:
    """The run of the sequences of two runs at the same step, those of the first one in front.

    Args:
        first: as `kept` gives it.
        second: of the same methods, as `kept` gives it.

    Raises:
        ValueError: they do not go together: what methods keep of their prompts has other shapes.
    """
    batches = first.layout.batch_size, second.layout.batch_size
    stages = first.pruning_stages, second.pruning_stages
    forms = [[(each.first_layer, each.renumbered) for each in run] for run in stages]
    if first.step != second.step or forms[0] != forms[1]:
        raise ValueError("the runs are at other steps, or were pruned in other layers")
    found = DecodeContext(
        first.layout.with_others(second.layout),
        num_layers=first.num_layers,
        attention_layers=first.attention_layers,
        prompt_ids=joined_by_row(first.prompt_ids, second.prompt_ids, batches),
        image_token=first.image_token,
        video_tokens=joined_by_row(first.video_tokens, second.video_tokens, batches),
        processor=first.processor,
        step=first.step,
        is_prefill=False,
        pruning_stages=[
            PruningStage(
                one.first_layer,
                one.layout.with_others(two.layout),
                torch.cat([one.index, two.index]),
                renumbered=one.renumbered,
            )
            for one, two in zip(*stages, strict=True)
        ],
        config=first.config,
        modules=first.modules,
        engine=first.engine.with_others(second.engine, batches),
        state=joined(_without_layouts(first.state), _without_layouts(second.state), batches),
        memory=joined(first.memory, second.memory, batches),
        declined=_declined(first, second),
    )
    found.alive = torch.cat([first.alive, second.alive])
    for name in _SHARED:
        setattr(found, name, getattr(first, name))
    for each in (first, second):
        settle(each)
    moved = (Began(each.run, each.rows, each.places + batches[0]) for each in _began(second))
    found.began = (*_began(first), *moved)
    return found


def settle(context: DecodeContext) -> None:
    """Count what was counted since the last time in the runs in which the sequences began."""
    if not context.began:
        return
    counted, context.counts = context.counts, {}
    for method, counts in counted.items():
        for number, each in enumerate(context.began):
            each.run.counts_of(method).add_part(counts, each.rows, each.places, with_sizes=number == 0)


def _began(context: DecodeContext) -> tuple[Began, ...]:
    rows = torch.arange(context.layout.batch_size)
    return context.began or (Began(context, rows, rows),)


def _kept(began: Began, rows: Tensor, batch: int) -> Began | None:
    """Those of the sequences that are among some rows; None: there is none."""
    numbers = torch.full((batch,), -1)
    numbers[began.places] = began.rows
    left = numbers[rows]
    places = (left >= 0).nonzero().flatten()
    return Began(began.run, left[places], places) if len(places) else None


def _without_layouts(state: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """What methods keep but for what they find anew for a layout, which is in its key."""
    return {
        key: value
        for key, value in state.items()
        if not (isinstance(key, tuple) and any(isinstance(each, PromptLayout) for each in key))
    }


def _declined(first: DecodeContext, second: DecodeContext) -> dict[object, dict[str, Tensor]]:
    """Sequences that methods leave as they are, by method and reason."""
    found: dict[object, dict[str, Tensor]] = {}
    for method in {**first.declined, **second.declined}:
        of_both = [each.declined.get(method, {}) for each in (first, second)]
        found[method] = {
            reason: torch.cat(
                [
                    reasons.get(reason, torch.zeros_like(run.alive))
                    for reasons, run in zip(of_both, (first, second), strict=True)
                ]
            )
            for reason in {**of_both[0], **of_both[1]}
        }
    return found
