"""Settings of an evaluation job: tasks, a model, methods, data, and how to run them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from vlmfix.evaluation.runner.variants import Variant, recipe_of, variants_of
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.evaluation.tasks.registry import get_task, task_names
from vlmfix.models.embedded import DEFAULT_MODEL
from vlmfix.recipes import find_recipe
from vlmfix.settings import parse_yaml, read_yaml, user_path

SYNTHETIC = "synthetic"
RESUME = ("if_possible", "always", "never")
# Settings that are plain values, in words.
_PLAIN: dict[str, tuple[type, str]] = {
    "model": (str, "a name or path, in quotes if it looks like a number"),
    "revision": (str, "a branch, tag or commit, in quotes if it looks like a number"),
    "output": (str, "the path of a folder, in quotes if it looks like a number"),
    "seed": (int, "a whole number"),
    "device": (str, "a text such as cpu or cuda:1"),
    "dtype": (str, "a text such as bfloat16"),
    "baselines": (bool, "true or false"),
    "retry_errors": (bool, "true or false"),
    "allow_environment_change": (bool, "true or false"),
    "allow_missing": (bool, "true or false"),
    "force": (bool, "true or false"),
}
# Samples that may fail by default: this share, and at least this number.
ERROR_SHARE, ERROR_COUNT = 0.01, 25
# Old names of settings.
_RENAMED = {"controls": "baselines"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """An evaluation job.

    Args:
        tasks: names of benchmarks, in order.
        tasks_from: directories that hold a folder for each of the user's own benchmarks.
        variants: the first one is what the others are compared with; none: the recipe of the checkpoint,
            which is known when the model is.
        baselines: whether the baselines that belong to a comparison are added, see
            `vlmfix.evaluation.runner.baselines`.
        model: embedded model, folder or hub id.
        revision: branch, tag or commit of a hub id.
        protocols: by task; a task without one gets its default.
        data: "synthetic", or paths and names for `vlmfix.evaluation.datasets`: a root, single files, or a
            data set with a column map.
        limit: about how many samples of each task, or which share of its images; whole images, see
            `vlmfix.evaluation.subset`; None: all.
        limit_images: how many images of each task, in the place of `limit`.
        batch_size: prompts per forward pass; 0 finds one by itself.
        output: folder of all runs of the job; by default `runs/` and the name of the model.
        seed: of sampling protocols.
        device: as on the command line.
        dtype: as on the command line.
        settings: what the job was made of, to make it again.
        resume: "if_possible", "always" (there must be something to go on with) or "never".
        retry_errors: whether samples that failed before are tried again.
        max_errors: number, or share of the samples below 1, of failures after which a run stops.
        allow_environment_change: whether a run may go on with other versions or devices.
        allow_missing: as on the command line.
        force: whether recipes that are for other weights are taken.
    """

    tasks: tuple[str, ...]
    tasks_from: tuple[Path, ...] = ()
    variants: tuple[Variant, ...]
    baselines: bool = True
    model: str = DEFAULT_MODEL
    revision: str | None = None
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    data: Mapping[str, Any] | str = SYNTHETIC
    limit: int | float | None = None
    limit_images: int | None = None
    batch_size: int = 0
    output: Path
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    resume: str = "if_possible"
    retry_errors: bool = True
    max_errors: int | float | None = None
    allow_environment_change: bool = False
    allow_missing: bool = False
    force: bool = False

    def on(self, model: PreTrainedModel) -> Job:
        """This job on a model: with the recipe of the checkpoint, if it asks for it.

        Raises:
            ValueError: there is none, or a recipe of the job is for other weights.
        """
        if not self.variants:
            given = {name: value for name, value in self.settings.items() if name != "methods"}
            return make_job(given | {"recipes": [find_recipe(model, self.tasks).content]})
        for variant in self.variants:
            if variant.recipe is not None:
                variant.recipe.check(model, force=self.force)
        return self

    def allowed_errors(self, samples: int) -> int:
        """How many of a number of samples may fail."""
        if self.max_errors is None:
            return max(ERROR_COUNT, int(ERROR_SHARE * samples))
        return self.max_errors if isinstance(self.max_errors, int) else int(self.max_errors * samples)


def make_job(settings: Mapping[str, Any]) -> Job:
    """A job of settings in the form of a job file, checked.

    Args:
        settings: the fields of `Job`, but `methods` and `recipes` in the place of `variants`: names, or
            mappings from a name to its parameters (of several methods `a+b`: parameters by method), or
            `auto` alone; files or names of recipes, or what such a file holds; `protocol` in the place of
            `protocols`: ids or files; `batch_size: auto`.

    Raises:
        ValueError: an unknown key, or a value out of its range.
        FileNotFoundError: a protocol or recipe that is not there.
    """
    settings = dict(settings)
    for old, new in _RENAMED.items():
        if settings.get(old) is not None:
            if settings.get(new) is not None:
                raise ValueError(f"a job has both {old} and {new}, its new name; keep {new}")
            warnings.warn(f"{old} is now called {new}; use that name", stacklevel=2)
            settings[new] = settings[old]
        settings.pop(old, None)
    names = {each.name for each in dataclasses.fields(Job)} - {"variants", "protocols", "settings"} | {
        "methods",
        "recipes",
        "protocol",
    }
    unknown = sorted(map(str, settings.keys() - names))
    if unknown:
        raise ValueError(f"a job has no {', '.join(unknown)}; it has {', '.join(sorted(names))}")
    given = {key: value for key, value in settings.items() if value is not None}
    _check_plain(given)
    tasks_from = tuple(_directory(each) for each in _several("tasks_from", given.pop("tasks_from", ())))
    tasks = _several("tasks", given.pop("tasks", ()))
    if not tasks:
        raise ValueError(f"no task to evaluate; name one or more of {', '.join(task_names(tasks_from))}")
    for task in tasks:
        if not isinstance(task, str):
            raise ValueError(f"unknown task {task!r}; tasks are {', '.join(task_names(tasks_from))}")
        get_task(task, tasks_from)
    protocols: dict[str, Protocol] = {}
    for id in _several("protocol", given.pop("protocol", ())):
        if not isinstance(id, str):
            raise ValueError(f"protocol is {id!r}; it must be an id such as pope.llava, or a list of ids")
        protocol = parse_protocol(id, tasks_from)
        if protocol.task not in tasks:
            raise ValueError(f"protocol {id} is for {protocol.task}, which is not among the tasks")
        if protocol.task in protocols:
            raise ValueError(
                f"two protocols for {protocol.task}; runs of different protocols need a job each"
            )
        protocols[protocol.task] = protocol
    recipes = [recipe_of(each) for each in _several("recipes", given.pop("recipes", ()))]
    variants = variants_of(_several("methods", given.pop("methods", ())), recipes)
    if given.get("force") and not recipes:
        raise ValueError("force takes recipes that are for other weights; name one under recipes (--recipe)")
    if recipes:  # a file may be another one when the report is written again
        settings["recipes"] = [recipe.content for recipe in recipes]
    given["batch_size"] = _count("batch_size", given.get("batch_size", "auto"), auto=True)
    output = given.get("output", f"runs/{Path(given.get('model', DEFAULT_MODEL)).name}")
    given["output"] = user_path(output)
    if output != output.encode(errors="replace").decode():
        raise ValueError(f"output is {output!r}, which is not UTF-8, as the files of runs are; name another")
    for name in ("limit", "max_errors"):
        if name in given:
            given[name] = _count_or_share(name, given[name], least=1 if name == "limit" else 0)
    if "limit_images" in given:
        given["limit_images"] = _count("limit_images", given["limit_images"])
        if "limit" in given:
            raise ValueError("a job has both limit and limit_images; give one of them")
    if given.get("resume", RESUME[0]) not in RESUME:
        raise ValueError(f"resume is {given['resume']!r}; it must be one of {', '.join(RESUME)}")
    if not isinstance(given.get("data", SYNTHETIC), str | Mapping):
        raise ValueError("data must be 'synthetic', a path, or a mapping of paths")
    return Job(
        tasks=tuple(dict.fromkeys(tasks)),
        tasks_from=tasks_from,
        variants=variants,
        protocols=protocols,
        settings=dict(settings),
        **given,
    )


def read_job(path: str | Path) -> dict[str, Any]:
    """The settings of a job file, for `make_job`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no job file {str(path)!r}; check the path")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no job file; it needs keys such as tasks, model, methods, output")
    return content


def parse_protocol(text: str, tasks_from: Sequence[Path] = ()) -> Protocol:
    """A protocol by its id or file, with deviations: `pope.llava`, `chair.512/coco+max_new_tokens=64`.

    Raises:
        ValueError: an unknown protocol or setting, or a value out of its range.
        FileNotFoundError: no such file.
    """
    name, *changes = text.split("+")
    values = {}
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise ValueError(f"protocol {text!r}: {change!r} is not KEY=VALUE, such as +max_new_tokens=32")
        if key in values:
            raise ValueError(f"protocol {text!r} gives {key} twice; keep one")
        try:
            values[key] = parse_yaml(value)
        except ValueError as error:
            raise ValueError(f"protocol {text!r}: the value of {key} is not readable ({error})") from error
    protocol = load_protocol(name, tasks_from)
    return protocol.with_(**values) if values else protocol


def _directory(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"tasks_from is {value!r}; it must be the path of a folder of benchmarks, or a list")
    directory = user_path(value)
    if not directory.is_dir():
        raise FileNotFoundError(f"tasks_from: there is no folder {str(value)!r}; check the path")
    return directory


def _check_plain(given: Mapping[str, Any]) -> None:
    """Refuse plain values of a wrong type, which YAML makes of unquoted text."""
    for name, (kind, wanted) in _PLAIN.items():
        if name in given and (type(given[name]) is not kind or given[name] == ""):
            raise ValueError(f"{name} is {given[name]!r}; it must be {wanted}")


def _several(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str | Mapping):
        return [value]
    if not isinstance(value, Sequence):
        raise ValueError(f"{name} is {value!r}; it must be a name, or a list of them")
    return value


def _count(name: str, value: Any, *, auto: bool = False) -> int:
    if auto and value == "auto":
        return 0
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} is {value!r}; it must be 1 or more{', or auto' if auto else ''}")
    return number


def _count_or_share(name: str, value: Any, *, least: int) -> int | float:
    """A whole number, or a share between 0 and 1."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if (
        math.isfinite(number)
        and number >= least
        and number == int(number)
        and (number > 1 or "." not in str(value))
    ):
        return int(number)
    if 0 < number < 1:
        return number
    raise ValueError(
        f"{name} is {value!r}; it must be a whole number from {least} on, or a share such as 0.1"
    )
