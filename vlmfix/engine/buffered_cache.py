"""Keys and values in buffers with room for those to come, so that a decode step copies none of the others."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64


class BufferedLayer(DynamicLayer):
    """A layer of a dynamic cache whose keys and values are the beginnings of two larger tensors."""

    _buffers: tuple[Tensor, ...]

    @classmethod
    def of(cls, layer: DynamicLayer) -> Self:
        """The layer of a cache, with room."""
        own = cls()
        vars(own).update(vars(layer))
        own._make_room()
        return own

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append to keys and values."""
        before = self.get_seq_length()
        length = before + key_states.shape[2]
        if length > self._buffers[0].shape[2]:
            self._make_room(key_states.shape[2])
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, before:length] = states
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Leave other sequences out.

        Args:
            rows: those that stay, as `rows_that_stay` orders them.
        """
        length, places = self.get_seq_length(), torch.arange(len(rows))
        filled = places[rows != places]
        for buffer in self._buffers:
            buffer[filled, :, :length] = buffer[rows[filled], :, :length]
        self._buffers = tuple(buffer[: len(rows)] for buffer in self._buffers)
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def _make_room(self, least: int = 0) -> None:
        length = self.get_seq_length()
        buffers: list[Tensor] = []
        for states in (self.keys, self.values):
            assert states is not None
            rows, heads, _, size = states.shape
            buffers.append(states.new_empty(rows, heads, length + max(least, _ROOM), size))
            buffers[-1][:, :, :length] = states
        self._buffers = tuple(buffers)
        self.keys, self.values = (buffer[:, :, :length] for buffer in buffers)


def rows_that_stay(alive: Tensor) -> Tensor:
    """The sequences that have not ended; the last ones stand where others were, so that few move.

    Args:
        alive: `(batch,)` bool, on the CPU.

    Returns:
        Where each is now, `(sequences,)` int64.
    """
    count = int(alive.sum())
    rows = torch.arange(count)
    rows[~alive[:count]] = alive[count:].nonzero().flatten() + count
    return rows


def give_room(cache: Cache | None) -> bool:
    """Put the keys and values of a filled cache into buffers; whether all of its layers take them."""
    if type(cache) is not DynamicCache or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return False
    cache.layers = [
        BufferedLayer.of(layer) if layer.is_initialized else layer  # one that shares keys has none
        for layer in cache.layers
        if isinstance(layer, DynamicLayer)
    ]
    return True


def keep_rows(cache: Cache, rows: Tensor) -> None:
    """Leave sequences out of a cache with room; see `BufferedLayer.keep`."""
    for layer in cache.layers:
        if isinstance(layer, BufferedLayer):
            layer.keep(rows)
