"""Gates: numbers in [0, 1], one a sequence and step, that scale the edits of a method."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vlmfix.engine.gate_formulas import disagreement, entropy, margin, ramp, top1, uniform
from vlmfix.settings import closest

_WORDS = re.compile(
    r"(?P<name>\w+?)(?P<below>:below)?:(?P<low>[^:]+?)(\.\.(?P<high>[^:]+))?(:(?P<key>\w+)=(?P<value>[^:]+))?"
)


class Seen(NamedTuple):
    """What gates know of a step when the model has computed its logits.

    Args:
        logits: of the model, before any edit, `(batch, vocabulary)` float32.
        branches: of the branches, in the same form.
        image_mass: attention of the newest token to the image, `(batch,)`; None: no gate asks for it.
        tokens: the newest token that was read, `(batch,)` int64.
        step: 0 in the prefill, then the number of tokens generated before.
    """

    logits: Tensor
    branches: Sequence[Tensor]
    image_mass: Tensor | None
    tokens: Tensor
    step: int


@dataclass(frozen=True)
class Gate(ABC):
    """How far a method acts in a step: 0 leaves the model as it is, 1 is the whole edit.

    Edits of logits take what is seen in the same step, edits of attention what was seen in the step before.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def first(self) -> float:
        """Opening for attention in the first step, when nothing has been seen yet."""

    @abstractmethod
    def opening(self, seen: Seen) -> Tensor:
        """Openings in [0, 1], `(batch,)` float32; each depends on its own sequence alone."""


@dataclass(frozen=True)
class Always(Gate):
    """The same opening in every step: what a gate with this mean has to beat.

    Args:
        strength: in [0, 1].
    """

    strength: float

    name: ClassVar = "always"

    def __post_init__(self) -> None:
        _check("strength", self.strength, 1)

    def __str__(self) -> str:
        return f"{self.name}:{_number(self.strength)}"

    @property
    def first(self) -> float:
        return self.strength

    def opening(self, seen: Seen) -> Tensor:
        return torch.full_like(seen.logits[:, 0], self.strength)


@dataclass(frozen=True)
class Random(Gate):
    """Open in a share of the steps, by a hash of seed, step and newest token: what a gate that is open as
    often has to beat. The first step of attention is open, as under the gates that see something.

    Args:
        share: of the steps, in [0, 1].
        seed: 0 or more.
    """

    share: float
    seed: int = 0

    name: ClassVar = "random"

    def __post_init__(self) -> None:
        _check("share", self.share, 1)
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number from 0 to {2**31 - 1}")

    def __str__(self) -> str:
        return f"{self.name}:{_number(self.share)}" + (f":seed={self.seed}" if self.seed else "")

    @property
    def first(self) -> float:
        return 1.0

    def opening(self, seen: Seen) -> Tensor:
        drawn = uniform(seen.tokens.to(seen.logits.device), seen.step, self.seed)
        return (drawn < self.share).float()


@dataclass(frozen=True)
class SignalGate(Gate):
    """Opens as a signal grows from `low` to `high`; with one number, above it and not before.

    Args:
        low: the signal up to which it is closed.
        high: the signal from which it is open; None: any above `low`.
        below: open up to `low`, closed from `high` on.
        first: opening for attention in the first step, in [0, 1].
    """

    low: float
    high: float | None = None
    below: bool = False
    first: float = 1.0

    greatest: ClassVar[float] = 1.0
    """The largest value of the signal; the smallest is 0."""

    def __post_init__(self) -> None:
        if self.high is None:
            object.__setattr__(self, "high", self.low)
        _check("low", self.low, self.greatest)
        _check("high", self.high, self.greatest)
        _check("first", self.first, 1)
        if self.high < self.low:  # type: ignore[operator]  # no None any more
            raise ValueError(
                f"high is {self.high:g} and low is {self.low:g}; give them in order, and below to turn them"
            )
        if not isinstance(self.below, bool):
            raise ValueError(f"below is {self.below!r}; it must be true or false")

    def __str__(self) -> str:
        text = f"{self.name}:{'below:' if self.below else ''}{_number(self.low)}"
        text += f"..{_number(self.high)}" if self.high != self.low else ""
        return text + (f":first={_number(self.first)}" if self.first != 1 else "")

    @abstractmethod
    def signal(self, seen: Seen) -> Tensor:
        """What it looks at, `(batch,)` float32, from 0 to `greatest`."""

    def opening(self, seen: Seen) -> Tensor:
        assert self.high is not None
        return ramp(self.signal(seen), self.low, self.high, below=self.below)


class Entropy(SignalGate):
    """By the entropy of the next token over the logarithm of the vocabulary size: how unsure the model is.

    AdaVBoost (arXiv 2602.13600) raises attention to the image with it, from 0 to 0.5, 0.6 or 0.7 by model;
    its code adds a term for visual support. A bound does not carry over to another size of vocabulary.
    """

    name: ClassVar = "entropy"

    def signal(self, seen: Seen) -> Tensor:
        return entropy(seen.logits)


class Margin(SignalGate):
    """By 1 less the difference between the two largest probabilities of the next token."""

    name: ClassVar = "margin"

    def signal(self, seen: Seen) -> Tensor:
        return margin(seen.logits)


class Top1(SignalGate):
    """By 1 less the largest probability of the next token, on which M3ID (arXiv 2403.14003) and CRoPS decide
    whether they act."""

    name: ClassVar = "top1"

    def signal(self, seen: Seen) -> Tensor:
        return top1(seen.logits)


class ImageMass(SignalGate):
    """By the attention of the newest token to the image, mean of all heads of the middle layer, before the
    edits of that layer. Costs one explicit row of attention scores in this layer."""

    name: ClassVar = "image_mass"

    def signal(self, seen: Seen) -> Tensor:
        assert seen.image_mass is not None
        return seen.image_mass.to(seen.logits.device)


class Disagreement(SignalGate):
    """By the sum of the differences between the probabilities of the next token and those of the first
    branch, from 0 to 2: for methods that contrast the two. ONLY (arXiv 2507.00898) decides at 0.2 to 0.25."""

    name: ClassVar = "disagreement"
    greatest: ClassVar = 2.0

    def signal(self, seen: Seen) -> Tensor:
        if not seen.branches:  # of prompts without an image, which such methods leave as they are
            return torch.zeros_like(seen.logits[:, 0])
        return disagreement(seen.logits, seen.branches[0])


_GATES: dict[str, type[Gate]] = {
    each.name: each for each in (Always, Random, Entropy, Margin, Top1, ImageMass, Disagreement)
}


def parse_gate(text: Any) -> Gate:
    """The gate that a text such as "entropy:0.1..0.4" describes; `str` of a gate is such a text.

    Forms: "always:0.5"; "random:0.3" and "random:0.3:seed=7"; of a signal "entropy:0.3" (open above),
    "entropy:0.1..0.4" (opens in between), "image_mass:below:0.1" (open below), and with ":first=0" at the end
    closed for attention in the first step.

    Raises:
        ValueError: it has another form, or a number is out of its range.
    """
    found = _WORDS.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(
            f"gate is {text!r}; it must be a name with numbers, such as entropy:0.3, entropy:0.1..0.4, "
            f"image_mass:below:0.1, random:0.3 or always:0.5; names: {', '.join(_GATES)}"
        )
    name, low, high, below, key, value = found.group("name", "low", "high", "below", "key", "value")
    if name not in _GATES:
        raise ValueError(f"gate {text!r}: unknown {name!r}{closest(name, _GATES)}; use {', '.join(_GATES)}")
    cls = _GATES[name]
    wanted = {Always: "", Random: "seed"}.get(cls, "first")
    has_signal = issubclass(cls, SignalGate)
    if (key is not None and key != wanted) or (not has_signal and (high is not None or below is not None)):
        form = "NUMBER, LOW..HIGH or below:..." if has_signal else "one number"
        raise ValueError(
            f"gate {text!r}: {name} takes {form}{f', and {wanted}=NUMBER after it' if wanted else ''}"
        )
    try:
        numbers = [_read(each) for each in (low, high) if each is not None]
        given: dict[str, Any] = {} if key is None else {key: _read(value)}
        return cls(*numbers, **given, **({} if below is None else {"below": True}))
    except ValueError as error:
        raise ValueError(f"gate {text!r}: {error}") from error


def _check(name: str, value: Any, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from 0 to {high:g}")


def _read(text: str) -> float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _number(value: float | None) -> str:
    return repr(float(value or 0)).removesuffix(".0")
