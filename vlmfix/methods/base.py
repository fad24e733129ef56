"""What a method is: a dataclass of numbers, and the hooks with which it acts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from vlmfix.models.profiles import Profile
from vlmfix.runtime.layout import Rows
from vlmfix.runtime.run import Run
from vlmfix.runtime.steering import steer


@dataclass(frozen=True, kw_only=True)
class Card:
    """What `vlmfix methods` prints of a method.

    Args:
        level: attention, logits, tokens, vision encoder or image.
        changes: what it changes, in a few words.
        forwards: forward passes per generated token; 1.0 is the cost of plain decoding.
        fidelity: what it was built from: "paper", "released code" or "reconstruction".
        paper: arXiv id.
    """

    level: str
    changes: str
    forwards: float
    fidelity: str
    paper: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """A mitigation strategy; `with method(model): model.generate(...)` applies it.

    A method declares its numbers as fields, checks them in `__post_init__`, describes itself in `card`,
    names the values that switch it off in `neutral`, and overrides the hooks that it needs. It never touches
    a model and keeps what it learns in `run.state`.
    """

    card: ClassVar[Card]
    neutral: ClassVar[Mapping[str, Any]]

    def __call__(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Attach to `model` for a `with` block; see `vlmfix.runtime.steering.steer` for what is refused."""
        return steer(model, self)

    @property
    def is_neutral(self) -> bool:
        """Whether the numbers leave the model as it is; the stock model then runs untouched."""
        return all(getattr(self, name) == value for name, value in self.neutral.items())

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        """This method with every value filled in that depends on the checkpoint.

        Args:
            config: of the whole model.
            profile: what is known about the checkpoint; None if nothing is.

        Raises:
            ValueError: a value is missing or does not fit the model; the message says how to get one.
        """
        return self

    def enter_layer(self, run: Run, layer: int, hidden_states: Tensor) -> None:
        """See the residual stream that enters a layer, `(batch, prompt, hidden)`; in the prefill only."""

    def rows(self, run: Run, layer: int) -> Rows | None:
        """The prompt rows this method wants explicitly in this layer and step; None: no part in it.

        Generated rows always belong to the rows of a method that takes part.
        """
        return None

    def edit_scores(self, run: Run, layer: int, scores: Tensor) -> Tensor:
        """Scaled scores before mask and softmax, `(batch, heads, rows, keys)` float32; returns them."""
        return scores

    def edit_weights(self, run: Run, layer: int, weights: Tensor) -> Tensor:
        """Weights after the softmax, `(batch, heads, rows, keys)` float32; returns them, never in place."""
        return weights

    def edit_heads(self, run: Run, layer: int, heads: Tensor) -> Tensor:
        """Outputs of all heads and rows before the output projection, `(batch, queries, heads, head_dim)`."""
        return heads

    def observe(self, run: Run, layer: int, weights: Tensor) -> None:
        """See the final weights of the rows asked for, `(batch, heads, rows, keys)` float32."""


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Refuse a number outside [low, high], and what is no number.

    Raises:
        ValueError: naming the parameter, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
