"""Recipes: methods, their parameters and decoding that go together on one checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.atomic import write_text
from vlmfix.engine.combination import check_combination
from vlmfix.engine.compatibility import stock_model
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import Method
from vlmfix.methods.registry import make_method
from vlmfix.methods.validation import shown
from vlmfix.models.digest import weights_digest
from vlmfix.models.match import file_name, match_of, mismatch
from vlmfix.models.profiles import find_profile, user_directory
from vlmfix.recipe_files import FIELDS, check_fields, fields_of, plain
from vlmfix.settings import configs_directory, dump_yaml, read_yaml, user_path


@dataclass(frozen=True)
class Recipe:
    """Methods that were found to work together on one checkpoint, and the evidence.

    `with recipe(model, processor): model.generate(**inputs, **recipe.decoding)` applies it, and so does
    `vlmfix.generate(model, processor, image, prompt, recipe)`.

    Args:
        name: by which tables call it.
        match: the checkpoint that it is for, see `vlmfix.models.match.match_of`; with `weights`.
        methods: names and parameters, in the order of attachment; what is not given is at its default.
        decoding: arguments of `model.generate` that differ from greedy decoding: `num_beams`, 2 or more.
        task: benchmark that it was chosen for.
        data: images that it was chosen and tested on; free.
        evidence: what was measured, row by row; free, such as label, metric, value, low and high.
        versions: of the software that found it.

    Raises:
        ValueError: a field is not what it must be, or a method does not take its parameters; names the field
            and the value.
        UnsupportedError: methods that do not go together on any model.
    """

    name: str
    match: Mapping[str, Any]
    methods: tuple[tuple[str, Mapping[str, Any]], ...]
    decoding: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    evidence: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(vars(self))
        methods = tuple((name, plain(f"methods.{name}", own)) for name, own in self.methods)
        object.__setattr__(self, "methods", methods)
        for name in ("match", "decoding", "data", "evidence", "versions"):
            object.__setattr__(self, name, plain(name, getattr(self, name)))
        object.__setattr__(self, "evidence", tuple(self.evidence))
        self.make_methods()

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        methods: Sequence[Method],
        *,
        name: str,
        decoding: Mapping[str, Any],
        task: str,
        data: Mapping[str, Any],
        evidence: Sequence[Mapping[str, Any]],
        versions: Mapping[str, str],
    ) -> Recipe:
        """A recipe for a model, which does not depend on the profiles of this machine.

        Args:
            model: that it was found on.
            methods: in the order of attachment.
            name: as above, and so are the others.
            decoding: arguments of `model.generate`.
            task: benchmark.
            data: images.
            evidence: what was measured.
            versions: of software.

        Raises:
            ValueError: the model has no weights, or a method lacks a value for it.
        """
        model = stock_model(model)
        chosen = tuple((method.name, _own_parameters(method, model)) for method in methods)
        return cls(name, match_of(model), chosen, decoding, task, data, evidence, versions)

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no YAML, or a field is missing or not what it must be; names file and field.
        """
        file = user_path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no recipe file {str(path)!r}; check the path")
        return cls.of_content(read_yaml(file), str(path))

    @classmethod
    def of_content(cls, content: Any, where: str) -> Recipe:
        """The recipe that a file has, see `content`.

        Args:
            content: of the file.
            where: it was read, for messages.

        Raises:
            ValueError: a field is missing or not what it must be.
        """
        try:
            return cls(**fields_of(content))
        except (ValueError, UnsupportedError) as error:
            raise ValueError(f"{where} is not a recipe: {error}") from error

    @property
    def content(self) -> dict[str, Any]:
        """What a file has of it: plain values, in the order of the fields."""
        own = {name: getattr(self, name) for name in FIELDS}
        methods = [{name: parameters} for name, parameters in self.methods]
        return own | {"methods": methods, "evidence": list(self.evidence)}

    def write(self, path: str | Path) -> None:
        """Write a recipe file; it is either whole or as it was, whenever the process is killed.

        Raises:
            OSError: it cannot be written.
        """
        write_text(user_path(path), dump_yaml(self.content))

    def install(self) -> Path:
        """Write it to where `--method auto` looks first, and return the file.

        Raises:
            ValueError: `VLMFIX_PROFILES` names no folder.
            OSError: it cannot be written.
        """
        path = _user_recipes() / file_name(self.name, self.match)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write(path)
        return path

    def make_methods(self) -> list[Method]:
        """The methods, in the order of attachment.

        Raises:
            ValueError: an unknown method or parameter, or a value out of its range.
            UnsupportedError: methods that do not go together.
        """
        made = []
        for name, parameters in self.methods:
            try:
                made.append(make_method(name, **parameters))
            except ValueError as error:
                raise ValueError(f"methods.{name}: {error}") from error
        check_combination(made)
        return made

    def check(self, model: PreTrainedModel, *, force: bool = False) -> None:
        """Refuse a checkpoint other than the one that the recipe is for.

        Args:
            model: a stock model, or a wrapper around one.
            force: whether to warn in place of refusing.

        Raises:
            ValueError: the model is of another type or shape, or has other weights.
        """
        fault = mismatch(self.match, stock_model(model))
        if fault is None:
            return
        text = f"recipe {self.name!r} is for another checkpoint: {fault}"
        if not force:
            raise ValueError(
                f"{text}; make one for this model with 'vlmfix tune --model MODEL', or use it all the same: "
                "--force, in Python recipe(model, force=True)"
            )
        warnings.warn(f"{text}; it is used all the same", stacklevel=2)

    def __call__(
        self, model: PreTrainedModel, processor: ProcessorMixin | None = None, *, force: bool = False
    ) -> AbstractContextManager[list[Method]]:
        """Attach all methods to `model` for a `with` block, which gives the methods.

        Pass `decoding` to `model.generate` in the block.

        Args:
            model: the checkpoint that it is for.
            processor: of the model, for methods that read the words of the prompt or change its pixels.
            force: whether another checkpoint is taken, with a warning.

        Raises:
            ValueError: it is for another checkpoint.
            UnsupportedError: on entering, as a method says that cannot attach.
        """
        self.check(model, force=force)
        return _attached(self.make_methods(), model, processor)

    def generate_kwargs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `model.generate` that the caller gives, and those of the recipe.

        Raises:
            ValueError: they contradict each other.
        """
        config = given.get("generation_config")
        for name, own in self.decoding.items():
            value = given.get(name, getattr(config, name, None))
            if value is not None and value != own:
                raise ValueError(
                    f"{name} is {shown(value)}, and recipe {self.name!r} decodes with {own}; leave it out, "
                    "or take the methods alone: method=recipe.make_methods()"
                )
        return {**given, **self.decoding}


def load_recipe(path_or_name: str | Path) -> Recipe:
    """A recipe by its file, or by the name of one that was tuned here or is shipped.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no recipe, or `VLMFIX_PROFILES` names no folder.
    """
    if user_path(path_or_name).is_file():
        return Recipe.read(path_or_name)
    known = list(recipes())
    for recipe in known:
        if recipe.name == path_or_name:
            return recipe
    names = ", ".join(dict.fromkeys(recipe.name for recipe in known)) or "none"
    raise FileNotFoundError(
        f"no recipe {str(path_or_name)!r}; it is neither a file nor the name of a recipe, of which there "
        f"are: {names}"
    )


def find_recipe(model: PreTrainedModel, tasks: Sequence[str] = ("chair",)) -> Recipe:
    """The recipe of a checkpoint: the newest that the user tuned for its weights, else a shipped one.

    Args:
        model: a stock model, or a wrapper around one.
        tasks: names of benchmarks; recipes that were tuned on one of them go before all others. Without a
            word, those for captions do.

    Raises:
        ValueError: there is none, a file is no recipe, or `VLMFIX_PROFILES` names no folder.
    """
    model = stock_model(model)
    fitting = [recipe for recipe in recipes() if mismatch(recipe.match, model) is None]
    if fitting:
        return next((recipe for recipe in fitting if recipe.task in tasks), fitting[0])
    raise ValueError(
        f"no recipe is known for this checkpoint (weights {weights_digest(model)}); make one with "
        "'vlmfix tune --model MODEL', or name methods"
    )


def recipes() -> Iterator[Recipe]:
    """All recipes, those that the user tuned before those that are shipped; newest first.

    Raises:
        ValueError: a file is no recipe, or `VLMFIX_PROFILES` names no folder.
    """
    yield from map(Recipe.read, recipe_paths())


def recipe_paths() -> Iterator[Path]:
    """The files of all recipes, in the order of `recipes`.

    Raises:
        ValueError: `VLMFIX_PROFILES` names no folder.
    """
    tuned = sorted(_user_recipes().glob("*.yaml"), key=lambda path: -path.stat().st_mtime_ns)
    yield from chain(tuned, sorted(_shipped().glob("*.yaml")))


def _user_recipes() -> Path:
    return user_directory() / "recipes"


def _shipped() -> Path:
    return configs_directory() / "recipes"


@contextmanager
def _attached(
    methods: list[Method], model: PreTrainedModel, processor: ProcessorMixin | None
) -> Iterator[list[Method]]:
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method(model, processor))
        yield methods


def _own_parameters(method: Method, model: PreTrainedModel) -> dict[str, Any]:
    """The parameters that differ from the defaults, those that the checkpoint's profile gives included."""
    resolved = method if method.is_identity else method.resolve(model.config, find_profile(model))
    defaults = type(method)().parameters
    return {name: value for name, value in resolved.parameters.items() if value != defaults.get(name)}
