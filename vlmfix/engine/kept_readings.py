"""What a model made of pictures, kept for further passes over them."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmfix.engine import compatibility
from vlmfix.engine.kept_beginnings import Beginning, KnownBeginnings, ReadBeginnings
from vlmfix.engine.state import Encoded
from vlmfix.models.structure import text_decoder

Features = tuple[Encoded, Any]
"""What the vision encoder made of an image, and the form in which the model gave it."""


class KeptReadings:
    """Features of images and beginnings of prompts, within a number of bytes; what does not fit is not kept.

    Args:
        device: of the model.
        limit: in bytes.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device = device
        self.limit = limit
        self.size = 0
        """Bytes that are taken."""
        self.spared_seconds = 0.0
        """What it took to make all that was taken from here so far, at the time when it was made."""
        self.spared_tokens = 0
        """Tokens that the text decoder did not read, as they were taken from here."""
        self._features: dict[bytes, tuple[Features, float]] = {}
        self._beginnings = KnownBeginnings()
        self._bytes_a_token = 0.0

    def features(self, digest: bytes) -> Features | None:
        """Those of an image; None: they are not here."""
        found, seconds = self._features.get(digest, (None, 0.0))
        self.spared_seconds += seconds
        return found

    def keep_features(self, digest: bytes, features: Features, seconds: float) -> None:
        """Keep the features of an image, which took so many seconds."""
        encoded, form = features
        tensors = [encoded.features, *encoded.injected]
        if digest not in self._features and self.takes(sum(each.nbytes for each in tensors)):
            own, *injected = map(_alone, tensors)
            self._features[digest] = (Encoded(own, injected), form), seconds

    def beginnings(self, asked: Sequence[list[Tensor]], *, with_states: bool) -> list[Beginning | None]:
        """Of prompts, each one or None; see `KnownBeginnings.find`."""
        found = self._beginnings.find(asked, with_states=with_states)
        for each in found:
            if each is not None:
                self.spared_seconds += each.read.seconds
                self.spared_tokens += each.length
        return found

    def keep_beginnings(self, told_by: Sequence[list[Tensor]], read: ReadBeginnings) -> None:
        """Keep as many beginnings as there is room for.

        Args:
            told_by: of each, what tells it apart.
            read: all of them.
        """
        tokens = read.layers[0].keys.shape[2]
        self._bytes_a_token = read.size / tokens
        telling = max(sum(each.nbytes for each in values) for values in told_by)
        number = min(len(told_by), (self.limit - self.size) // (read.size + telling))
        if number > 0:
            self.size += number * (read.size + telling)
            own = read.first(number)
            values = [[each.clone() for each in several] for several in told_by[:number]]
            kept = [Beginning(own, row, len(several[0])) for row, several in enumerate(values)]
            self._beginnings.keep(values, kept)

    def has_room(self, tokens: int) -> bool:
        """Whether beginnings of so many tokens in all fit, as far as is known."""
        return self.limit > self.size + tokens * self._bytes_a_token

    def takes(self, size: int) -> bool:
        """Whether there was room for so many bytes, which then are taken."""
        if self.size + size > self.limit:
            return False
        self.size += size
        return True

    def give_up(self) -> bool:
        """Let go of everything and keep nothing more, where memory ran out; False: nothing was here."""
        had, self.size, self.limit = self.size, 0, 0
        self._features.clear()
        self._beginnings.clear()
        return had > 0

    def now(self) -> float:
        """Seconds on a clock, when the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


_kept: weakref.WeakKeyDictionary[nn.Module, KeptReadings] = weakref.WeakKeyDictionary()


@contextmanager
def keep_readings(model: PreTrainedModel, limit: int) -> Iterator[KeptReadings]:
    """Within the block, calls of `answer_batch` keep for each other what the model made of pictures.

    It is found by value, so that whatever changed pixels, features or prompts is read anew. What a method
    takes part in is neither kept nor taken from here, see `cached_vision` and `shared_prefix`.

    Args:
        model: whose readings.
        limit: of what is kept, in bytes.
    """
    decoder = text_decoder(compatibility.stock_model(model))
    _kept[decoder] = kept = KeptReadings(model.device, limit)
    try:
        yield kept
    finally:
        del _kept[decoder]
        kept.give_up()


def kept_readings(model: PreTrainedModel) -> KeptReadings | None:
    """Of the `keep_readings` block that is open; None: there is none."""
    return _kept.get(text_decoder(compatibility.stock_model(model)))


def _alone(tensor: Tensor) -> Tensor:
    """A tensor without the rest of the storage of which it is a part."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
