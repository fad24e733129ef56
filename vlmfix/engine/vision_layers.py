"""Attention in any layers of a vision encoder with a class token."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Queries of a picture whose attention is held at a time.
_CHUNK = 256


class LayerAttention(NamedTuple):
    """Attention to the patches of a picture, or of a tile of it, in one layer.

    Args:
        given: by the class token, `(heads, patches)` float32.
        received: from all patches, averaged over the heads, `(patches,)` float32; None: nobody needs it.
    """

    given: Tensor
    received: Tensor | None

    def to(self, device: torch.device) -> LayerAttention:
        """The same on `device`."""
        return LayerAttention(
            self.given.to(device), None if self.received is None else self.received.to(device)
        )


class LayersTap:
    """Hooks on layers of a CLIP encoder that keep what they attended to in the last pictures."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._undo = ExitStack()

    def read(self, layers: Sequence[nn.Module], wanted: Mapping[int, bool]) -> None:
        """Read some layers, and no others.

        Args:
            layers: of the encoder.
            wanted: which, by number, and of each, whether `LayerAttention.received` is needed.
        """
        self.close()
        for number, received in wanted.items():
            see = functools.partial(self._see, number, received)
            attention = layers[number].get_submodule("self_attn")
            self._undo.callback(attention.register_forward_pre_hook(see, with_kwargs=True).remove)

    def close(self) -> None:
        """Take the hooks off and forget what they saw."""
        self._undo.close()
        self._seen = {}

    def take(self, tiles: int) -> list[dict[int, LayerAttention]]:
        """What was seen of each of so many tiles since it was taken last, by layer."""
        seen, self._seen = self._seen, {}
        return [
            {
                layer: LayerAttention(given[tile], None if received is None else received[tile])
                for layer, (given, received) in seen.items()
            }
            for tile in range(tiles)
        ]

    def _see(
        self, layer: int, received: bool, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        key = clip_keys(module, states)
        given = clip_weights(module, states[:, :1], key)[:, :, 0, 1:]
        total = None
        if received:
            parts = states[:, 1:].split(_CHUNK, dim=1)
            of_parts = [clip_weights(module, rows, key).mean(dim=1).sum(dim=1)[:, 1:] for rows in parts]
            total = torch.stack(of_parts).sum(dim=0)
        self._seen[layer] = given, total


def clip_keys(module: Any, states: Tensor) -> Tensor:
    """Keys of the tokens that enter attention of a CLIP encoder, `(tiles, tokens, heads, head_dim)`
    float32."""
    keys: Tensor = module.k_proj(states).view(*states.shape[:2], module.num_heads, module.head_dim)
    return keys.float()


def clip_weights(module: Any, rows: Tensor, key: Tensor) -> Tensor:
    """Attention of some tokens in a CLIP encoder, `(tiles, heads, rows, tokens)` float32.

    Args:
        module: the attention of a layer.
        rows: what enters it at these tokens, `(tiles, rows, width)`.
        key: see `clip_keys`.
    """
    query = module.q_proj(rows).view(*rows.shape[:2], module.num_heads, module.head_dim).float()
    weights: Tensor = (torch.einsum("tqhd,tkhd->thqk", query, key) * module.scale).softmax(dim=-1)
    return weights
