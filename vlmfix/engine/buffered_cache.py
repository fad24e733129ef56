"""Keys and values in buffers with room for those to come, so that a decode step copies none of the others."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64


class BufferedLayer(DynamicLayer):
    """A layer of a dynamic cache whose keys and values are the beginnings of two larger tensors.

    Whoever puts other tensors in their place (beams, for instance) is followed at the next token.
    """

    _buffers: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, layer: DynamicLayer) -> Self:
        """The layer of a cache; it gets room with its next token."""
        own = cls()
        vars(own).update(vars(layer))
        return own

    def plain(self) -> DynamicLayer:
        """The layer as one without room, which copies what it holds with every token."""
        layer = DynamicLayer()
        vars(layer).update({name: value for name, value in vars(self).items() if name != "_buffers"})
        return layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append to keys and values."""
        before = self.get_seq_length()
        # It was reset, or what it holds has to stay as it is for a backward pass.
        if before == 0 or (torch.is_grad_enabled() and key_states.requires_grad):
            return super().update(key_states, value_states, *args, **kwargs)
        length = before + key_states.shape[2]
        if not self._is_in_buffers or length > self._buffers[0].shape[2]:
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
        if not self._is_in_buffers:
            self._make_room()
        length, places = self.get_seq_length(), torch.arange(len(rows))
        filled = places[rows != places]
        for buffer in self._buffers:
            buffer[filled, :, :length] = buffer[rows[filled], :, :length]
        self._buffers = tuple(buffer[: len(rows)] for buffer in self._buffers)
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def take_in(self, other: BufferedLayer) -> None:
        """Go on with the sequences of another layer, too, after these; both hold as many tokens."""
        length, buffers = self.get_seq_length(), list[Tensor]()
        for mine, others in zip(self._held, other._held, strict=True):
            rows, heads, _, size = mine.shape
            buffers.append(mine.new_empty(rows + len(others), heads, length + _ROOM, size))
            buffers[-1][:rows, :, :length] = mine
            buffers[-1][rows:, :, :length] = others
        self._buffers = tuple(buffers)
        self.keys, self.values = (buffer[:, :, :length] for buffer in buffers)

    @property
    def _is_in_buffers(self) -> bool:
        """Whether keys and values are still beginnings of the buffers, which may be written to."""
        return bool(self._buffers) and all(
            buffer.is_inference() == torch.is_inference_mode_enabled()
            and states.data_ptr() == buffer.data_ptr()
            and states.stride() == buffer.stride()
            and len(states) == len(buffer)
            for states, buffer in zip(self._held, self._buffers, strict=True)
        )

    @property
    def _held(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _make_room(self, least: int = 0) -> None:
        length = self.get_seq_length()
        buffers: list[Tensor] = []
        for states in self._held:
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
    if type(cache) is not DynamicCache or not all(
        type(layer) in (DynamicLayer, BufferedLayer) for layer in cache.layers
    ):
        return False
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:  # one that shares keys has none
            cache.layers[index] = BufferedLayer.of(layer)
    return True


def take_room(cache: Cache) -> None:
    """Let a cache be one of plain layers again, with what it holds."""
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, BufferedLayer):
            cache.layers[index] = layer.plain()


def keep_rows(cache: Cache, rows: Tensor) -> None:
    """Leave sequences out of a cache with room; see `BufferedLayer.keep`."""
    for layer in cache.layers:
        if isinstance(layer, BufferedLayer):
            layer.keep(rows)


def can_join(one: Cache, two: Cache) -> bool:
    """Whether two caches with room hold as many tokens in each layer."""
    lengths = [
        [each.get_seq_length() if isinstance(each, BufferedLayer) else None for each in cache.layers]
        for cache in (one, two)
    ]
    return lengths[0] == lengths[1]


def join(one: Cache, two: Cache) -> None:
    """Let a cache hold the sequences of another one, too, after its own; see `can_join`."""
    for mine, others in zip(one.layers, two.layers, strict=True):
        if isinstance(mine, BufferedLayer) and isinstance(others, BufferedLayer):
            mine.take_in(others)
