"""Classes of methods that would fail later are refused by name, with the place and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from vlmfix.methods import registry
from vlmfix.methods.attention.base import ScoreEdit
from vlmfix.methods.logits.base import LogitsMixer
from vlmfix.methods.registry import get_method, register_method
from vlmfix.methods.search_space import Between, LayersBetween, OneOf
from vlmfix.methods.validation import check_range

INFO = vlmfix.MethodInfo(stage="logits", changes="nothing", where="nowhere", forwards=1.0)


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@dataclass(frozen=True, kw_only=True)
class Sound(LogitsMixer):
    strength: float = 1.0

    info = INFO
    identity_parameters: ClassVar = {"strength": 0, "beta": 0}
    search_space: ClassVar = {"strength": Between(0.1, 2)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("strength", self.strength, 0, 10)

    def combine(self, context: Any, logits: Tensor, branches: Any) -> Tensor:
        return logits * (1 + self.strength)


def changed(**members: Any) -> type[Any]:
    return dataclass(frozen=True, kw_only=True)(type("Changed", (Sound,), members))


def test_a_sound_class() -> None:
    assert register_method("sound")(Sound) is Sound
    assert get_method("sound") is Sound


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"search_space": {"strenght": Between(0.1, 2)}}, r"has 'strenght' \(did you mean 'strength'\?\)"),
        ({"search_space": {"strength": (0.1, 2)}}, "use Between, LayersBetween or OneOf"),
        ({"search_space": {"strength": LayersBetween(0, 8)}}, "are shares of the depth, up to 1"),
        ({"search_space": ["strength"]}, "it must be a mapping from parameters"),
        ({"identity_parameters": {"strenth": 0}}, r"identity_parameters has 'strenth' \(did you mean"),
        ({"gate": "top1:0.5", "__annotations__": {"gate": "str"}}, "gate, which is a field of every method"),
    ],
)
def test_declarations_that_do_not_fit(members: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"Changed.*{message}"):
        register_method("changed")(changed(**members))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"search_space": {"strength": Between(0.1, 200)}}, r"\(search_space of strength\): strength is 200"),
        ({"search_space": {"strength": OneOf((1, -1))}}, r"\(search_space of strength\): strength is -1"),
        ({"identity_parameters": {"strength": -1}}, r"\(identity_parameters\): strength is -1"),
        (
            {"strength": "much", "__annotations__": {"strength": "float"}},
            r"\(the defaults\): strength is 'much'",
        ),
    ],
)
def test_values_that_the_class_refuses_itself(members: dict[str, Any], message: str) -> None:
    register_method("changed")(changed(**members))
    with pytest.raises(ValueError, match=rf"Changed refuses its own values {message}"):
        get_method("changed")


def test_a_class_without_dataclass() -> None:
    class Bare(Sound):
        power: float = 2.0

    with pytest.raises(ValueError, match="Bare: power is no field of it; put @dataclass"):
        register_method("bare")(Bare)


def test_hooks_that_are_missing() -> None:
    class Typo(vlmfix.Method):
        info = INFO

        def edit_weight(self, context: Any, layer: int, weights: Tensor) -> Tensor:
            return weights

    class NoRows(vlmfix.Method):
        info = INFO

        def edit_weights(self, context: Any, layer: int, weights: Tensor) -> Tensor:
            return weights

    class NoFormula(ScoreEdit):
        info = INFO
        published_layers: ClassVar = (8, 24)

        def factors(self, image_tokens: Tensor, system_tokens: Tensor) -> Tensor:
            return image_tokens.float()

    with pytest.raises(TypeError, match=r"Typo overrides no hook \(did you mean 'edit_weights'\?\)"):
        register_method("typo")(Typo)
    with pytest.raises(TypeError, match="NoRows overrides edit_weights and not rows"):
        register_method("norows")(NoRows)
    with pytest.raises(TypeError, match="NoFormula lacks formula"):
        register_method("noformula")(NoFormula)


@pytest.mark.parametrize("layers", [None, "late", (24, 8)])
def test_published_layers(layers: Any) -> None:
    class Scores(ScoreEdit):
        info = INFO
        if layers is not None:
            published_layers: ClassVar = layers

        def factors(self, image_tokens: Tensor, system_tokens: Tensor) -> Tensor:
            return image_tokens.float()

        @property
        def formula(self) -> Any:
            return torch.add

    register_method("scores")(Scores)
    with pytest.raises(ValueError, match=r"Scores.published_layers is .*; it must be the first edited layer"):
        get_method("scores")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Between(2, 0.1), "is no range; low must be a number below high"),
        (lambda: Between("a", 2), "is no range"),  # type: ignore[arg-type]
        (lambda: Between(0, 2, log=True), "low must be a number above 0 and below high"),
        (lambda: LayersBetween(-0.5, 1), "must be numbers, 0 or more"),
        (lambda: OneOf(()), "offers nothing"),
        (
            lambda: vlmfix.MethodInfo(stage="logits", changes="x", where="y", forwards="two"),
            "forwards must be",
        ),
        (lambda: vlmfix.MethodInfo(stage="logits", changes="", where="y", forwards=1.0), "changes must be"),
    ],
)
def test_descriptions_and_ranges(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("returned", "found"), [(lambda logits: None, "NoneType"), (lambda logits: logits[:, 1:], r"shape \(1, ")]
)
def test_an_edit_that_is_no_tensor_of_the_same_shape(
    returned: Any, found: str, llava: PreTrainedModel
) -> None:
    mixer = changed(combine=lambda self, context, logits, branches: returned(logits))()
    inputs = families.prompt("llava", llava, (1,))
    message = f"Changed.combine returned {found}.*it must return a tensor of the shape that it got"
    with mixer(llava), pytest.raises(vlmfix.UnsupportedError, match=message), torch.no_grad():
        llava.generate(**inputs, max_new_tokens=1)
