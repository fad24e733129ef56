"""Candidates for a recipe: up to three methods and a way of decoding, with their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Protocol

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.api import decoding_under
from vlmfix.errors import UnsupportedError
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.methods.base import Method, Stage
from vlmfix.methods.baselines.decoding import BaselineBeam
from vlmfix.methods.grammar import make_methods
from vlmfix.methods.registry import GREEDY, list_methods, make_method
from vlmfix.methods.search_space import Between, Dimension, FirstOf, LayersBetween, OneOf
from vlmfix.methods.suitability import suitability

_NONE = "none"
# Openings that are tried for every method at the attention and the logits, see `vlmfix.engine.gates`.
_GATE = OneOf((_NONE, "entropy:0..0.2", "entropy:0.1..0.3", "always:0.65"))
_DIGITS = 3
# Places of methods by their stage; those that edit the layers share theirs.
_SLOTS: dict[Stage, str] = {"attention": "attention", "steering": "attention", "logits": "logits"}
# Methods that did best alone by each objective, which come into combinations.
_BEST = 3


class Suggests(Protocol):
    """What a trial of Optuna offers."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Candidate:
    """Methods with their parameters, in the order of attachment.

    Args:
        parts: name of each method, and the parameters that differ from its defaults.
    """

    parts: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()

    @classmethod
    def of(cls, parts: Mapping[str, Mapping[str, Any]]) -> Candidate:
        """A candidate of parameters by method."""
        return cls(
            tuple(
                (name, tuple((key, _fixed(own[key])) for key in sorted(own))) for name, own in parts.items()
            )
        )

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """By method."""
        return {name: dict(own) for name, own in self.parts}

    @property
    def label(self) -> str:
        """As tables show it."""
        shown = []
        for name, own in self.parts:
            settings = ", ".join(f"{key}={_shown(value)}" for key, value in own)
            shown.append(f"{name}({settings})" if settings else name)
        return "+".join(shown) or GREEDY

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """The methods."""
        return tuple(make_methods(self.parameters))

    @property
    def variant(self) -> Variant:
        """As a row of a job."""
        return Variant(self.label, self.methods)

    @property
    def cost(self) -> float:
        """Forward passes a token, beams multiplied in, as the methods declare them; 1 is greedy decoding."""
        passes: float = 1 + sum(method.info.forwards - 1 for method in self.methods)
        beams: int = decoding_under(self.methods, {}).get("num_beams", 1)
        return passes * beams

    def without(self, name: str) -> Candidate:
        """The others of its methods."""
        return Candidate(tuple(part for part in self.parts if part[0] != name))

    def only(self, name: str) -> Candidate:
        """One of its methods alone."""
        return Candidate(tuple(part for part in self.parts if part[0] == name))


@dataclass(frozen=True)
class Calibrated:
    """What was found for a search.

    Args:
        parameters: that a method lacks on this model, by method.
        rankings: of parameters that are lists, what to take of, the best first, by method.
    """

    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rankings: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """What a search may combine on a model: one or two methods at attention or residual stream, one at
    the logits, and a way of decoding; combinations that the library refuses are never tried.

    Args:
        slots: names of the methods that each place may hold.
        ranges: of each parameter of each method, layers as whole numbers.
        defaults: values of these parameters that the method has on this model by itself; of a ranking, how
            many.
        left_out: why a method is not tried, by name.
        calibrated: parameters that were calibrated for this search, by method.
        max_cost: forward passes a token that a candidate may take, beams multiplied in.
    """

    slots: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, Mapping[str, Dimension]]
    defaults: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]
    calibrated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_cost: float = math.inf

    @classmethod
    def on(
        cls,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        decodes: bool,
        calibrated: Calibrated,
        max_cost: float,
    ) -> Space:
        """What works on a model.

        Args:
            model: as loaded.
            processor: with it.
            decodes: whether answers have more than a token, so that beams can differ from greedy decoding.
            calibrated: what was found for this search.
            max_cost: see above; methods that take more alone are left out.
        """
        depth = model.config.get_text_config().num_hidden_layers
        slots: dict[str, list[str]] = {"attention": [], "logits": [], "decoding": []}
        ranges: dict[str, dict[str, Dimension]] = {}
        defaults: dict[str, dict[str, Any]] = {}
        left_out: dict[str, str] = {}
        for name, cls_ in list_methods().items():
            if cls_.search_space is None:
                continue
            slot = "decoding" if issubclass(cls_, BaselineBeam) else _SLOTS.get(cls_.info.stage, "")
            if slot not in slots or (slot == "decoding" and not decodes):
                continue
            method = make_method(name, **calibrated.parameters.get(name, {}))
            if (cost := Candidate.of({name: {}}).cost) > max_cost:
                left_out[name] = f"it takes {cost:g} forward passes a token, more than {max_cost:g}"
                continue
            found = suitability(method, model, processor) if method.attaches else None
            if found is not None and not found.works:
                left_out[name] = found.notes[0]
                continue
            own = {key: _at_depth(each, depth) for key, each in cls_.search_space.items()}
            own |= {key: FirstOf(each) for key, each in calibrated.rankings.get(name, {}).items()}
            resolved = method.parameters if found is None else dict(found.parameters)
            if slot != "decoding" and cls_.takes_gate():
                own["gate"] = _GATE
                resolved["gate"] = _NONE
            slots[slot].append(name)
            ranges[name] = own
            defaults[name] = {key: _within(own[key], resolved[key]) for key in own}
        found_slots = {slot: tuple(several) for slot, several in slots.items()}
        return cls(found_slots, ranges, defaults, left_out, calibrated.parameters, max_cost)

    @property
    def first_trials(self) -> list[dict[str, Any]]:
        """Greedy decoding, then every method alone at its published values, as parameters of a trial."""
        none = {"attention": _NONE, "second attention": _NONE, "logits": _NONE, "decoding": _NONE}
        if not self.slots["decoding"]:
            del none["decoding"]
        alone = []
        for slot, names in self.slots.items():
            for name in names:
                alone.append({**none, slot: name, **self._values([name])})
        return [none, *alone]

    def combinations(
        self, fronts: Mapping[str, Sequence[float]], values: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """Combinations of the methods that did best alone, at published values, as parameters of trials.

        Pairs at the attention are of a method that gains much and one that makes up for what the first one
        costs; they come with the best way of decoding, some also with the best method at the logits.

        Args:
            fronts: what each method came to alone, by name; see `Objective.front`.
            values: the same as one number, by name; see `Objective.value`.
        """

        known = [name for name in self.slots["attention"] if name in fronts]
        numbers = range(len(fronts[known[0]]) if known else 0)
        best = [sorted(known, key=lambda name: -fronts[name][number])[:_BEST] for number in numbers]
        gain, *rooms = best or [[]]
        partners = [name for several in zip(*(rooms or [gain]), strict=True) for name in several]
        pairs = dict.fromkeys(
            (min(pair), max(pair)) for pair in product(gain, dict.fromkeys(partners)) if len(set(pair)) == 2
        )
        logits, decoding = (
            sorted(self.slots[slot], key=lambda name: -values.get(name, 0.0))[:1]
            for slot in ("logits", "decoding")
        )
        triples = [(*pair, _NONE) for pair in pairs]
        triples += [(*pair, name) for name in logits for pair in list(pairs)[:_BEST]]
        found = []
        for first, second, third in triples:
            names = [each for each in (first, second, third, *decoding) if each != _NONE]
            if self._go_together(names):
                places = {"attention": first, "second attention": second, "logits": third}
                places |= dict(zip(["decoding"], decoding, strict=False))
                found.append({**places, **self._values(names)})
        return found

    def _values(self, names: Sequence[str]) -> dict[str, Any]:
        """Published values as parameters of a trial."""
        return {f"{name}.{key}": value for name in names for key, value in self.defaults[name].items()}

    def suggest(self, trial: Suggests) -> Candidate:
        """The candidate of a trial; a method that does not go with those before it gives up its place."""
        attention, logits, decoding = (self.slots[name] for name in ("attention", "logits", "decoding"))
        chosen: dict[str, dict[str, Any]] = {}
        places = [("attention", attention), ("second attention", attention), ("logits", logits)]
        for place, names in [*places, *([("decoding", decoding)] if decoding else [])]:
            name = trial.suggest_categorical(place, (_NONE, *names))
            if name in (_NONE, *chosen) or not self._go_together([*chosen, name]):
                continue
            own = {key: _suggest(trial, f"{name}.{key}", each) for key, each in self.ranges[name].items()}
            own = {key: value for key, value in own.items() if (key, value) != ("gate", _NONE)}
            chosen[name] = {**self.calibrated.get(name, {}), **own}
        return Candidate.of(chosen)

    def _go_together(self, names: Sequence[str]) -> bool:
        try:
            make_methods({name: {} for name in names})
        except UnsupportedError:
            return False
        return Candidate.of({name: {} for name in names}).cost <= self.max_cost


def _shown(value: Any) -> Any:
    """A value for tables, which a list of heads would fill; the recipe has it in full."""
    is_list = isinstance(value, tuple) and value and isinstance(value[0], tuple)
    return f"{len(value)} of a list" if is_list else value


def _fixed(value: Any) -> Any:
    """A value of a file as one that can be compared and hashed."""
    return tuple(map(_fixed, value)) if isinstance(value, list | tuple) else value


def _at_depth(dimension: Dimension, depth: int) -> Dimension:
    if isinstance(dimension, LayersBetween):
        return LayersBetween(*dimension.at(depth))
    return dimension


def _within(dimension: Dimension, value: Any) -> Any:
    """A default; the nearest end of the range where it lies outside."""
    if isinstance(dimension, Between | LayersBetween):
        return min(max(value, dimension.low), dimension.high)
    if isinstance(dimension, FirstOf):
        return min(len(value), len(dimension.ranking))
    return value if value in dimension.values else dimension.values[0]


def _suggest(trial: Suggests, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Between):
        value = trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(dimension, LayersBetween):
        return trial.suggest_int(name, int(dimension.low), int(dimension.high))
    if isinstance(dimension, FirstOf):
        return dimension.ranking[: trial.suggest_int(name, 1, len(dimension.ranking), log=True)]
    return trial.suggest_categorical(name, dimension.values)
