"""What the name of a model in a request stands for: a model with methods, or with a recipe."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.api import decoding_under
from vlmfix.engine.compatibility import stock_model
from vlmfix.methods.base import Method
from vlmfix.methods.grammar import make_methods, parse_methods
from vlmfix.methods.registry import AUTO, GREEDY, get_method, list_methods
from vlmfix.methods.suitability import suitability
from vlmfix.models.match import mismatch
from vlmfix.recipes import Recipe, find_recipe, recipe_paths
from vlmfix.serve.errors import RequestError
from vlmfix.settings import closest

# Parameters, beside those that name files, by which a client would read or run what is not its own.
_OPERATOR_ONLY = {"shield": ("clip",), "mrfd": ("region_prompt",)}
_DEEPEST = 6
_LARGEST = 2**63


@dataclass(frozen=True)
class Plan:
    """How the model decodes.

    Args:
        text: the methods joined by `+`, "greedy", or the file name of the recipe.
        chosen: parameters by method.
        recipe: in the place of them.
    """

    text: str
    chosen: Mapping[str, Mapping[str, Any]]
    recipe: Recipe | None = None

    @property
    def key(self) -> str:
        """Equal for plans under which answers may be decoded together."""
        return json.dumps([self.text, self.chosen], sort_keys=True)

    def make_methods(self) -> list[Method]:
        """The methods, in the order of attachment, anew.

        Raises:
            ValueError: an unknown parameter, or a value out of its range.
            UnsupportedError: methods that do not go together.
        """
        return make_methods(self.chosen) if self.recipe is None else self.recipe.make_methods()

    def decoding(self, methods: Sequence[Method], generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `model.generate` under the plan, given those of the client.

        Raises:
            ValueError: they contradict each other.
        """
        own = dict(generate_kwargs) if self.recipe is None else self.recipe.generate_kwargs(generate_kwargs)
        return decoding_under(methods, own)


class Catalogue:
    """The names under which a server answers.

    Args:
        model: that it serves.
        processor: of the model.
        name: of the model.
        recipes: files that it takes beside those that come with vlmfix or were tuned here.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no recipe, or one of another checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        name: str,
        recipes: Sequence[Path] = (),
    ) -> None:
        model = stock_model(model)
        self.name = name
        self._recipes: dict[str, Recipe] = {}
        for path in recipes:
            recipe = Recipe.read(path)
            recipe.check(model)
            if path.name in self._recipes:
                raise ValueError(f"two recipe files are called {path.name!r}; rename one")
            self._recipes[path.name] = recipe
        known = [(path.name, Recipe.read(path)) for path in recipe_paths()]
        fitting = {name: recipe for name, recipe in known if mismatch(recipe.match, model) is None}
        self._recipes = fitting | self._recipes
        if fitting:
            self._recipes[AUTO] = find_recipe(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._methods = [own for own, cls in list_methods().items() if _suits(cls, model, processor)]

    @property
    def ids(self) -> list[str]:
        """The model alone, with each method that works on it as it is, and with each recipe."""
        return [self.name, *(f"{self.name}:{each}" for each in [*self._methods, *self._recipes])]

    def plan(self, requested: str, parameters: Mapping[str, Any] | None = None) -> Plan:
        """What a request asks for.

        Args:
            requested: "NAME", "NAME:var+vcd", "NAME:auto" or "NAME:FILE.yaml".
            parameters: of one method by name, or of several by method and name.

        Raises:
            RequestError: no such model, method or recipe (404).
            ValueError: parameters that do not fit.
            UnsupportedError: methods that do not go together.
        """
        name, text = requested, GREEDY
        if requested.startswith(f"{self.name}:"):
            name, text = self.name, requested.removeprefix(f"{self.name}:")
        if name != self.name:
            raise _unknown(
                f"there is no model {requested[:100]!r}{closest(requested[:100], self.ids)}; "
                f"this server has {self.name!r}, also as '{self.name}:METHOD'"
            )
        recipe = self._recipes.get(text)
        if recipe is not None:
            if parameters:
                raise ValueError(f"{text} is a recipe, whose parameters stand in it; leave method out")
            return Plan(text, dict(recipe.methods), recipe)
        if text == AUTO or text.endswith((".yaml", ".yml")):
            known = ", ".join(self._recipes) or "none"
            raise _unknown(f"there is no recipe {text[:100]!r} for this model; there are: {known}")
        try:
            for each in parse_methods(text):
                get_method(each)
        except ValueError as error:
            raise _unknown(str(error)) from error
        names = list(parse_methods(text))
        _check_plain("method", parameters or {})
        chosen = parse_methods(text, _by_method(names, parameters or {}))
        for each, own in chosen.items():
            _refuse_files(each, own)
        return Plan(text, chosen)


def _suits(cls: type[Method], model: PreTrainedModel, processor: ProcessorMixin) -> bool:
    """Whether a method works with the parameters that it has, or finds in the profile of the checkpoint."""
    try:
        return suitability(cls(), model, processor).works
    except (TypeError, ValueError):  # one that has parameters without defaults
        return False


def _unknown(message: str) -> RequestError:
    return RequestError(404, message, code="model_not_found", param="model")


def _by_method(names: Sequence[str], parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters by method; of a single one, they may stand alone."""
    if len(names) == 1 and not (parameters.keys() <= set(names)):
        return {names[0]: parameters}
    return parameters


def _refuse_files(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that name files or models of the machine.

    Raises:
        ValueError: there is one.
    """
    cls = get_method(name)
    for parameter, value in parameters.items():
        if value is not None and parameter in (*cls.parameter_files, *_OPERATOR_ONLY.get(cls.name, ())):
            raise ValueError(
                f"{parameter} of {name} is for the operator of the server alone; leave it out, or ask for a "
                "recipe with it"
            )
        if parameter == "settings" and isinstance(value, Mapping):  # of the method that a baseline copies
            copied = parameters.get("of", getattr(cls, "of", None))
            if isinstance(copied, str):
                _refuse_files(copied, value)


def _check_plain(place: str, value: Any, depth: int = 0) -> None:
    """Refuse values that no settings file could hold.

    Raises:
        ValueError: it is nested deeply, or a number is not finite or does not fit into 64 bits.
    """
    if depth > _DEEPEST:
        raise ValueError(f"{place} is nested too deeply; {_DEEPEST} levels are read")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} is {value}; it must be a finite number")
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError(f"{place} is a number of more than 64 bits; it must be smaller")
    if isinstance(value, Mapping):
        for name, each in value.items():
            _check_plain(f"{place}.{name}"[:100], each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check_plain(place, each, depth + 1)
