"""Memory of what was found out about the last images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

_Value = TypeVar("_Value")

# Images of which one object remembers something.
_REMEMBERED = 16


class RememberedByModel(Generic[_Value]):
    """Values of the last images, by model; they go with it and stay in this process."""

    def __init__(self) -> None:
        self._values: WeakKeyDictionary[PreTrainedModel, OrderedDict[Hashable, _Value]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return RememberedByModel, ()

    def get(self, model: PreTrainedModel, key: Hashable) -> _Value | None:
        """The value, which counts as used; None: it is not there."""
        values = self._values.setdefault(model, OrderedDict())
        if key in values:
            values.move_to_end(key)
        return values.get(key)

    def put(self, model: PreTrainedModel, key: Hashable, value: _Value) -> None:
        """Remember a value; the one that was not used for the longest time may go."""
        values = self._values.setdefault(model, OrderedDict())
        values[key] = value
        if len(values) > _REMEMBERED:
            values.popitem(last=False)
