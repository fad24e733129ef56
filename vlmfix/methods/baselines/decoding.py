"""Controls that act from outside: stock decoding at exact settings, and a question that asks for yes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmfix.methods.base import DetachedMethod, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import OneOf
from vlmfix.methods.validation import check_choice, check_whole

_NO_SAMPLING = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True, kw_only=True)
class OutsideMethod(DetachedMethod, ABC):
    """A strategy that changes what is asked or how it is decoded, and leaves the model alone."""

    edits: ClassVar = False

    @property
    @abstractmethod
    def instead(self) -> str:
        """What to do on a plain `model.generate`."""

    @property
    def why_detached(self) -> str:
        return (
            f"leaves the model alone, so that attaching it would do nothing: {self.instead}, or use "
            f"vlmfix.generate(model, processor, image, prompt, {type(self).__name__}())"
        )


@dataclass(frozen=True, kw_only=True)
class DecodingBaseline(OutsideMethod, ABC):
    """The stock model, decoded at exactly the `settings` that it names, whatever else was asked for."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Arguments of `model.generate`."""

    @property
    def instead(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.settings.items() if value is not None)
        return f"pass {given} to model.generate"

    def decoding(self, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**generate_kwargs, **self.settings}


@register_method("baseline.greedy")
@dataclass(frozen=True, kw_only=True)
class BaselineGreedy(DecodingBaseline):
    """Greedy decoding of the stock model (arXiv 2504.10020): the one baseline that compares across papers."""

    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="decoding: greedy",
        where="nowhere in the model",
        forwards=1.0,
        provenance="paper",
        paper="2504.10020",
        decoding="greedy, batches",
    )

    @property
    def settings(self) -> dict[str, Any]:
        return {"num_beams": 1, **_NO_SAMPLING}


@register_method("baseline.sample")
@dataclass(frozen=True, kw_only=True)
class BaselineSample(DecodingBaseline):
    """Sampling from the stock model's own distribution, temperature 1 and nothing cut off (arXiv 2504.10020):
    how much of a sampled baseline's weakness is noise.
    """

    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="decoding: sampling at temperature 1",
        where="nowhere in the model",
        forwards=1.0,
        provenance="paper",
        paper="2504.10020",
        decoding="sampling, batches",
    )

    @property
    def settings(self) -> dict[str, Any]:
        return {"num_beams": 1, "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


@register_method("baseline.beam")
@dataclass(frozen=True, kw_only=True)
class BaselineBeam(DecodingBaseline):
    """Beam search of the stock model (arXiv 2504.10020): the gain of beams alone.

    Args:
        num_beams: as many as the method under test has, 1 or more.
    """

    num_beams: int = 5

    search_space: ClassVar = {"num_beams": OneOf((5, 3))}

    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="decoding: beam search",
        where="nowhere in the model",
        forwards=1.0,
        provenance="paper",
        paper="2504.10020",
        decoding="beams, batches",
    )

    def __post_init__(self) -> None:
        check_whole("num_beams", self.num_beams, 1)

    @property
    def settings(self) -> dict[str, Any]:
        return {"num_beams": self.num_beams, **_NO_SAMPLING}


@register_method("baseline.prompt_bias")
@dataclass(frozen=True, kw_only=True)
class BaselinePromptBias(OutsideMethod):
    """One more sentence in the question that asks for one answer (arXiv 2504.10020): the gain of saying yes
    more often.

    Args:
        direction: "yes" or "no".
    """

    direction: str = "yes"

    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="the question: answer yes whenever possible",
        where="nowhere in the model",
        forwards=1.0,
        provenance="paper",
        paper="2504.10020",
    )

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, ("yes", "no"))

    @property
    def sentence(self) -> str:
        """What is appended."""
        return f"Answer {self.direction} whenever possible."

    @property
    def instead(self) -> str:
        return f"append {self.sentence!r} to the prompt"

    def prompt(self, text: str) -> str:
        return f"{text} {self.sentence}"

    @property
    def prompt_change(self) -> str:
        return f"bias-{self.direction}"
