"""Attention sinks on purpose: large models have them, a model this small would not grow them by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# The residual dimensions that are large on sinks, and their values on the first token and on visual sinks.
SINK_DIMENSIONS = (23, 117)
FIRST_TOKEN = (40.0, -20.0)
VISUAL_SINK = (26.0, -13.0)
FIRST_TOKEN_ATTENTION = 0.33
VISUAL_SINK_ATTENTION = 0.05
FIRST_LAYER = 2
PHI_FIRST, PHI_VISUAL, PHI_OTHERS = 10.5, 8.5, 3.3


def sink_score(hidden_states: Tensor) -> Tensor:
    """phi `(batch, sequence)` of `(batch, sequence, hidden)`: largest sink dimension over RMS."""
    rms = (hidden_states.float().square().mean(-1) + 1e-6).sqrt()
    return hidden_states[..., list(SINK_DIMENSIONS)].float().abs().amax(-1) / rms


@torch.no_grad()
def plant(embedding: nn.Embedding, first_token: int) -> None:
    """Start embeddings without a word on the sink dimensions, but large on them for the first token."""
    embedding.weight.normal_(0, 1)
    embedding.weight[:, list(SINK_DIMENSIONS)] = 0
    embedding.weight[first_token] *= 0.1
    embedding.weight[first_token, list(SINK_DIMENSIONS)] = torch.tensor(FIRST_TOKEN)


@dataclass
class Places:
    """Where the sinks are and which rows are asked to look at them, all `(batch, sequence)` bool.

    `focus_keys` `(batch, rows, keys)` bool marks what a row is to look at.
    """

    visual_sinks: Tensor
    text_rows: Tensor
    real: Tensor
    focus_keys: Tensor


def stream_loss(hidden_states: Tensor, places: Places) -> Tensor:
    """Keep phi high on the first token and the visual sinks and low on all other tokens, in one layer."""
    phi = sink_score(hidden_states)
    others = places.real & ~places.visual_sinks
    others[:, 0] = False
    loss = (PHI_FIRST - phi[:, 0]).relu().square().mean()
    loss = loss + _mean((PHI_VISUAL - phi).relu().square(), places.visual_sinks)
    return loss + _mean((phi - PHI_OTHERS).relu().square(), others)


def attention_loss(on_first: Tensor, on_visual_sinks: Tensor, places: Places) -> Tensor:
    """Ask text rows `(batch, sequence)` for some attention on the first token and the visual sinks."""
    short = (FIRST_TOKEN_ATTENTION - on_first).relu().square()
    short = short + 4 * (VISUAL_SINK_ATTENTION - on_visual_sinks).relu().square()
    return _mean(short, places.text_rows)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
