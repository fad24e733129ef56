"""Variants: methods at their settings, or a recipe, as rows of the tables of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import vlmfix
from vlmfix.methods.grammar import make_methods, parse_methods
from vlmfix.methods.registry import AUTO, GREEDY
from vlmfix.recipes import Recipe, load_recipe


@dataclass(frozen=True)
class Variant:
    """One or several methods at their settings, as one row of the tables.

    Args:
        label: as tables show it, unique in a job.
        methods: in the order of attachment; none is plain decoding.
        baseline_of: of which method it is a baseline, by label; "": of all methods; None: of none, it is
            tested.
        decoding: arguments of `model.generate` in the place of those of the protocol, such as `num_beams`.
        recipe: that it comes from, if any.
    """

    label: str
    methods: tuple[vlmfix.Method, ...]
    baseline_of: str | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def prompt_change(self) -> str:
        """What the methods change of the prompt, such as "+bias-yes"; "": nothing."""
        return "".join(f"+{change}" for method in self.methods if (change := method.prompt_change))

    @classmethod
    def of(cls, names: str, parameters: Mapping[str, Mapping[str, Any]]) -> Variant:
        """The variant that `a+b` names, with parameters by method.

        Raises:
            ValueError: unknown methods or parameters, or values out of their range.
            UnsupportedError: methods that do not go together.
        """
        chosen = parse_methods(names, parameters)
        shown = []
        for name, own in chosen.items():
            settings = ", ".join(f"{key}={value}" for key, value in own.items())
            shown.append(f"{name}({settings})" if settings else name)
        return cls("+".join(shown) or GREEDY, tuple(make_methods(chosen)))

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Variant:
        """The variant that a recipe is, under its name."""
        return cls(recipe.name, tuple(recipe.make_methods()), decoding=recipe.decoding, recipe=recipe)


def variants_of(methods: Sequence[Any], recipes: Sequence[Recipe]) -> tuple[Variant, ...]:
    """The rows of a job; none for `auto`.

    Raises:
        ValueError: two have one name, or `auto` is not alone.
    """
    if list(methods) == [AUTO]:
        if recipes:
            raise ValueError(f"{AUTO} stands alone, and there is recipe {recipes[0].name!r}; keep one")
        return ()
    variants = [_variant(each) for each in methods or (() if recipes else (GREEDY,))]
    variants += map(Variant.of_recipe, recipes)
    check_labels(variants)
    return tuple(variants)


def check_labels(variants: Sequence[Variant]) -> None:
    """Refuse two rows of one name.

    Raises:
        ValueError: naming it.
    """
    labels = [variant.label for variant in variants]
    twice = [variant for variant in variants if labels.count(variant.label) > 1]
    if any(variant.recipe is not None for variant in twice):
        raise ValueError(f"two rows are called {twice[0].label!r}; give the recipe another name in its file")
    if twice:
        raise ValueError(f"method {twice[0].label} is named twice with the same settings")


def recipe_of(entry: Any) -> Recipe:
    """A recipe by its file or name, or as the file has it, which is what `vlmfix report` reads."""
    if isinstance(entry, Mapping):
        return Recipe.of_content(entry, "an entry of recipes")
    if not isinstance(entry, str):
        raise ValueError(f"recipe {entry!r} must be a file, or the name of a recipe")
    return load_recipe(entry)


def _variant(entry: Any) -> Variant:
    """`var`, `{var: {moved_fraction: 0.6}}` or `{var+vhr: {var: {...}}}`."""
    if isinstance(entry, str):
        return Variant.of(entry, {})
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ValueError(f"method {entry!r} must be a name, or one name with its parameters")
    [(name, parameters)] = entry.items()
    if not isinstance(name, str):
        raise ValueError(f"method {name!r} must be a name, such as var")
    if "+" not in name:
        return Variant.of(name, {name: parameters})
    if not isinstance(parameters, Mapping):
        raise ValueError(f"the parameters of {name} are {parameters!r}; they must be a mapping by method")
    return Variant.of(name, parameters)
