"""What methods need to know of a model and no profile has, found on the search set alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.calibrate import CALIBRATIONS, calibrate
from vlmfix.calibration.results import Calibration
from vlmfix.evaluation.files.atomic import create_json
from vlmfix.evaluation.files.hashing import plain
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.registry import task_module
from vlmfix.methods.base import Method
from vlmfix.methods.registry import make_method
from vlmfix.methods.suitability import suitability
from vlmfix.models.profiles import Profile
from vlmfix.tuning.candidates import Calibrated
from vlmfix.tuning.worlds import World

CALIBRATED = "calibrated.json"

# Lists of which the search may take more or fewer: by method, its parameter and that of the profile.
_RANKED = {"adhh": ("heads", "adhh_heads")}


def calibrated_for(
    folder: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    worlds: Sequence[World],
    note: Callable[[str], None],
) -> Calibrated:
    """Calibrate what methods lack on this model, and what can be ranked; once a folder.

    Args:
        folder: of the run.
        model: as loaded.
        processor: with it.
        worlds: whose search sets are used.
        note: is told what is calibrated, and what cannot be.
    """
    path = folder / CALIBRATED
    if not path.exists():
        parameters: dict[str, Any] = {}
        rankings: dict[str, Any] = {}
        for name in CALIBRATIONS:
            method = make_method(name)
            works = suitability(method, model, processor).works
            if (
                method.search_space is None
                or CALIBRATIONS[name].takes_words
                or (works and (name not in _RANKED or not _judges(worlds)))
            ):
                continue
            note(f"calibrating {name} on the search set")
            try:
                found = _calibration(name, model, processor, worlds)
            except (ValueError, ImportError) as error:
                note(f"{name} is not calibrated: {error}")
                continue
            if not works:
                parameters[name] = _filled_in(method, found, model)
            if name in _RANKED:
                parameter, of_profile = _RANKED[name]
                rankings[name] = {parameter: found.rankings[of_profile]}
        create_json(path, plain({"parameters": parameters, "rankings": rankings}))
    content = json.loads(path.read_text(encoding="utf-8"))
    return Calibrated(
        content["parameters"],
        {
            name: {key: tuple(map(tuple, ranking)) for key, ranking in own.items()}
            for name, own in content["rankings"].items()
        },
    )


def _calibration(
    name: str, model: PreTrainedModel, processor: ProcessorMixin, worlds: Sequence[World]
) -> Calibration:
    """What a method's calibration finds.

    Raises:
        ValueError: there is nothing to be found, or the pictures cannot be judged.
        ImportError: a package is missing.
    """
    takes = CALIBRATIONS[name].on
    if takes == "pairs":
        raise ValueError(
            f"its directions lie in a file of their own; run 'vlmfix calibrate --method {name}' on annotated "
            "pictures that you do not report on"
        )
    if takes == "questions":
        raise ValueError(
            f"its heads are tried one by one, which takes long; run 'vlmfix calibrate --method {name}' on "
            "annotated pictures that you do not report on"
        )
    images: list[Any] = []
    for world in worlds:
        images += _pictures(world.sets.search) if takes == "pictures" else _annotated(world, name)
    return calibrate(name, model, processor, images)


def _filled_in(method: Method, found: Calibration, model: PreTrainedModel) -> dict[str, Any]:
    """The parameters that a calibration fills in."""
    values = {key: {"value": value, "source": "tune"} for key, value in found.values.items()}
    resolved = method.resolve(model.config, Profile("the search set", {}, values, Path()))
    return {key: value for key, value in resolved.parameters.items() if value != method.parameters[key]}


def _judges(worlds: Sequence[World]) -> bool:
    """Whether captions are judged, by which heads are ranked."""
    return all(world.task.name == "chair" for world in worlds)


def _pictures(samples: Sequence[Sample]) -> list[Path]:
    return list(dict.fromkeys(sample.image for sample in samples if sample.image is not None))


def _annotated(world: World, method: str) -> list[Any]:
    module = task_module("chair", "calibration_images")
    if world.task.name != "chair" or module is None:
        raise ValueError(
            f"captions are not judged in the task {world.task.name}; run 'vlmfix calibrate --method "
            f"{method}' on annotated pictures that you do not report on"
        )
    found: list[Any] = module.annotated_samples(world.task, world.sets.search)
    return found
