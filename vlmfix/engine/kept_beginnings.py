"""Beginnings of prompts that were read, for prompts of further passes that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class KeysValues(NamedTuple):
    """What a layer keeps of beginnings, `(beginnings, heads, tokens, head_dim)` each."""

    keys: Tensor
    values: Tensor


@dataclass(eq=False)
class ReadBeginnings:
    """Beginnings that were read in one pass.

    Args:
        layers: what each layer keeps of them; left-padded.
        hidden_states: what entered each layer, `(beginnings, tokens, hidden)`; empty if no method looked.
        seconds: that it took, a beginning.
    """

    layers: list[KeysValues]
    hidden_states: list[Tensor]
    seconds: float = 0.0

    @classmethod
    def of(cls, layers: Sequence[Any], hidden_states: Sequence[Tensor], seconds: float) -> ReadBeginnings:
        """Those of a cache that was filled."""
        return cls([KeysValues(each.keys, each.values) for each in layers], list(hidden_states), seconds)

    @property
    def size(self) -> int:
        """Bytes of a beginning."""
        tensors = [*self.hidden_states, *(each for layer in self.layers for each in layer)]
        return sum(each.nbytes // len(each) for each in tensors)

    def first(self, number: int) -> ReadBeginnings:
        """The first ones alone, in a storage of their own."""
        if number == len(self.layers[0].keys):
            return self
        return ReadBeginnings(
            [KeysValues(*(each[:number].clone() for each in layer)) for layer in self.layers],
            [each[:number].clone() for each in self.hidden_states],
            self.seconds,
        )


class Beginning(NamedTuple):
    """One of the beginnings that were read in a pass.

    Args:
        read: all of them.
        row: its number among these.
        length: its tokens.
    """

    read: ReadBeginnings
    row: int
    length: int


class KnownBeginnings:
    """Beginnings by all that tells them apart: embeddings, positions, and features that are injected."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, float], list[tuple[list[Tensor], Beginning]]] = {}

    def find(self, asked: Sequence[list[Tensor]], *, with_states: bool) -> list[Beginning | None]:
        """Those that are known. Reads the device.

        Args:
            asked: of each beginning, tensors `(tokens, values)` that tell it apart, its embeddings first.
            with_states: whether the hidden states are wanted, too.
        """
        return [
            next(
                (
                    known
                    for values, known in self._known.get(key, ())
                    if bool(known.read.hidden_states) >= with_states and _equal(values, wanted)
                ),
                None,
            )
            for key, wanted in zip(digests([each[0] for each in asked]), asked, strict=True)
        ]

    def keep(self, told_by: Sequence[list[Tensor]], beginnings: Sequence[Beginning]) -> None:
        """Keep beginnings; see `find` for what tells them apart."""
        keys = digests([each[0] for each in told_by])
        for key, values, beginning in zip(keys, told_by, beginnings, strict=True):
            others = [each for each in self._known.get(key, ()) if not _equal(each[0], values)]
            self._known[key] = [*others, (values, beginning)]

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


def gathered(beginnings: Sequence[Beginning], *, with_states: bool) -> ReadBeginnings:
    """Beginnings of several passes as one pass would have given them.

    Args:
        with_states: whether their hidden states are wanted.
    """
    first = beginnings[0].read
    longest = max(each.length for each in beginnings)
    rows = [each.row for each in beginnings]
    if (
        all(each.read is first for each in beginnings)
        and rows == list(range(len(first.layers[0].keys)))
        and first.layers[0].keys.shape[2] == longest
    ):
        return first

    def joined(parts: list[Tensor], tokens: int) -> Tensor:
        shape = list(parts[0].shape)
        shape[tokens] = longest
        whole = parts[0].new_zeros(len(parts), *shape)
        for row, (part, each) in enumerate(zip(parts, beginnings, strict=True)):
            start = part.shape[tokens] - each.length
            whole[row].narrow(tokens, longest - each.length, each.length).copy_(
                part.narrow(tokens, start, each.length)
            )
        return whole

    return ReadBeginnings(
        [
            KeysValues(
                *(
                    joined([each.read.layers[index][kind][each.row] for each in beginnings], 1)
                    for kind in (0, 1)
                )
            )
            for index in range(len(first.layers))
        ],
        [
            joined([each.read.hidden_states[index][each.row] for each in beginnings], 0)
            for index in range(len(first.hidden_states) if with_states else 0)
        ],
    )


def digests(embeddings: Sequence[Tensor]) -> list[tuple[int, float]]:
    """Equal for equal embeddings `(tokens, hidden)`, and hardly ever for others. Reads the device once."""
    if not embeddings:
        return []
    sums = torch.stack([each.float().sum() for each in embeddings]).tolist()
    return [(len(each), total) for each, total in zip(embeddings, sums, strict=True)]


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(*pair) for pair in zip(one, other, strict=True))
