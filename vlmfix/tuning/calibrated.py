"""What methods need to know of a model and no profile has, found on the search set alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.calibrate import CALIBRATIONS, calibrate
from vlmfix.evaluation.files.atomic import create_json
from vlmfix.evaluation.files.hashing import plain
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.registry import task_module
from vlmfix.methods.registry import make_method
from vlmfix.methods.suitability import suitability
from vlmfix.models.profiles import Profile
from vlmfix.tuning.worlds import World

CALIBRATED = "calibrated.json"


def calibrated_parameters(
    folder: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    worlds: Sequence[World],
    note: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Parameters of methods that lack a value for this model, by method; found once a folder.

    Args:
        folder: of the run.
        model: as loaded.
        processor: with it.
        worlds: whose search sets are used.
        note: is told what is calibrated, and what cannot be.
    """
    path = folder / CALIBRATED
    if not path.exists():
        found = {}
        for name in CALIBRATIONS:
            method = make_method(name)
            if method.search_space is None or suitability(method, model, processor).works:
                continue
            try:
                found[name] = _found(name, model, processor, worlds)
            except (ValueError, ImportError) as error:
                note(f"{name} is not calibrated: {error}")
            else:
                note(f"{name} is calibrated on the search set: {found[name]}")
        create_json(path, plain(found))
    content: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _found(
    name: str, model: PreTrainedModel, processor: ProcessorMixin, worlds: Sequence[World]
) -> dict[str, Any]:
    """The parameters that a calibration fills in.

    Raises:
        ValueError: there is nothing to be found, or the pictures cannot be judged.
        ImportError: a package is missing.
    """
    images: list[Any] = []
    for world in worlds:
        images += _annotated(world) if name == "adhh" else _pictures(world.sets.search)
    values = calibrate(name, model, processor, images).values
    profile = Profile(
        "the search set",
        {},
        {key: {"value": value, "source": "tune"} for key, value in values.items()},
        Path(),
    )
    method = make_method(name)
    resolved = method.resolve(model.config, profile)
    return {key: value for key, value in resolved.parameters.items() if value != method.parameters[key]}


def _pictures(samples: Sequence[Sample]) -> list[Path]:
    return list(dict.fromkeys(sample.image for sample in samples if sample.image is not None))


def _annotated(world: World) -> list[Any]:
    module = task_module("chair", "calibration_images")
    if world.task.name != "chair" or module is None:
        raise ValueError(
            f"captions are not judged in the task {world.task.name}; run 'vlmfix calibrate --method adhh' "
            "on annotated pictures that you do not report on"
        )
    found: list[Any] = module.annotated_samples(world.task, world.sets.search)
    return found
