"""Finding what a checkpoint without a profile needs, from a few image prompts, and writing it down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.atomic import write_text
from vlmfix.calibration import generated_attention, heads, register_neurons
from vlmfix.calibration.concepts import ConceptWords, calibrate_concept_heads
from vlmfix.calibration.directions import CaptionPair, calibrate_nullu, calibrate_vti
from vlmfix.calibration.exit_layer import calibrate_exit_layer
from vlmfix.calibration.gaze_shifts import calibrate_gift
from vlmfix.calibration.generated_attention import calibrate_generated_attention
from vlmfix.calibration.heads import AnnotatedImage, calibrate_heads
from vlmfix.calibration.register_neurons import calibrate_registers
from vlmfix.calibration.results import Calibration, Progress
from vlmfix.calibration.schedules import calibrate_adaptinfer
from vlmfix.calibration.sink_heads import YesNoQuestion, calibrate_sink_heads
from vlmfix.calibration.sinks import calibrate_sinks
from vlmfix.engine import compatibility
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.registry import get_method
from vlmfix.models.directions import write_directions
from vlmfix.models.match import file_name, match_of
from vlmfix.models.profiles import Profile, user_directory
from vlmfix.settings import dump_yaml


def calibrate(
    method: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[ImageLike] | Sequence[AnnotatedImage] | Sequence[CaptionPair] | Sequence[YesNoQuestion],
    *,
    words: ConceptWords | None = None,
    progress: Progress = None,
) -> Calibration:
    """Find what a method needs to know of a checkpoint.

    Args:
        method: one of `CALIBRATIONS`, by name.
        model: a stock image-text-to-text model.
        processor: its processor.
        images: as many as its `Calibrator` says: pictures, or what it takes of annotated ones.
        words: of the concept, for "head_pursuit" alone.
        progress: called with the number of pictures just read; each is read `CALIBRATIONS[method].reads`
            times.

    Raises:
        ValueError: another method, no images, or nothing to be found in this model.
        ImportError: a package is missing that this method's calibration needs.
    """
    calibrator = calibrator_of(method)
    check_words(method, words)
    if not images:
        annotated = ", ".join(name for name, each in CALIBRATIONS.items() if each.on != "pictures")
        raise ValueError(
            f"no images to calibrate on; give 20 to 50 ordinary pictures, annotated ones for {annotated}"
        )
    model = compatibility.stock_model(model)
    compatibility.check_model(model)
    given = {} if words is None else {"words": words}
    return calibrator.find(model, processor, images, progress, **given)


def calibrator_of(method: str) -> Calibrator:
    """How a method is calibrated.

    Raises:
        ValueError: the method has nothing to calibrate, or there is none of this name.
    """
    if method not in CALIBRATIONS:
        get_method(method)  # which tells names that nobody has
        raise ValueError(f"{method} has nothing to calibrate; {', '.join(CALIBRATIONS)} have")
    return CALIBRATIONS[method]


def check_words(method: str, words: ConceptWords | None) -> None:
    """Refuse words for a method that takes none, and none for one that does.

    Raises:
        ValueError: naming the method.
    """
    takes = CALIBRATIONS[method].takes_words
    if takes and words is None:
        raise ValueError(
            f"{method} is calibrated on the words of a concept; give --words objects, --words colours or "
            "--words FILE, in Python words=ConceptWords(...)"
        )
    if words is not None and not takes:
        raise ValueError(f"{method} is not calibrated on the words of a concept; leave out words")


@dataclass(frozen=True)
class Calibrator:
    """How a method is calibrated.

    Args:
        find: takes model, processor, what it is calibrated on, and the progress.
        on: "pictures"; "captions" (`AnnotatedImage`), "pairs" (`CaptionPair`), "questions" (`YesNoQuestion`)
            of annotated pictures.
        least: pictures for a firm result.
        most: pictures that are taken by default.
        reads: how often each is read.
        takes_words: whether it also takes the words of a concept.
    """

    find: Callable[..., Calibration]
    on: Literal["pictures", "captions", "pairs", "questions"] = "pictures"
    least: int = 20
    most: int = 50
    reads: int = 1
    takes_words: bool = False


CALIBRATIONS: dict[str, Calibrator] = {
    "var": Calibrator(calibrate_sinks),  # sink dimensions
    "gift": Calibrator(calibrate_gift),  # layers
    "adaptinfer": Calibrator(calibrate_adaptinfer),  # schedules; needs `vlmfix[adaptinfer]`
    "dyvte": Calibrator(calibrate_exit_layer, most=150),
    "adhh": Calibrator(calibrate_heads, "captions", 100, 150, heads.READS),
    "adaiat": Calibrator(calibrate_generated_attention, "captions", 100, 150, generated_attention.READS),
    "act": Calibrator(calibrate_sink_heads, "questions", 0),  # it warns by itself, of too few questions
    "registers": Calibrator(calibrate_registers, "pictures", 100, 200, register_neurons.READS),
    "vti": Calibrator(calibrate_vti, "pairs", 50, 100),
    "nullu": Calibrator(calibrate_nullu, "pairs", 50, 100),
    "head_pursuit": Calibrator(calibrate_concept_heads, least=100, most=256, takes_words=True),
}


def write_profile(
    model: PreTrainedModel, calibration: Calibration, name: str, path: Path | None = None
) -> Path:
    """Write what was found into a profile file that methods find by the weights of the model.

    Values of other parameters that the file has already of these weights stay.

    Args:
        model: the model that was calibrated.
        calibration: what to write.
        name: what people call the checkpoint.
        path: the file; None: in the user's own directory, where every later run looks first.

    Raises:
        ValueError: the weights are nowhere, the file is no profile, or `VLMFIX_PROFILES` names no folder.
        OSError: the file cannot be written.
    """
    match = match_of(model)
    if path is None:
        path = user_directory() / file_name(name, match)
    values = {}
    if path.is_file():
        before = Profile.read(path)
        values = dict(before.values) if before.match == match else {}
    source = f"vlmfix calibrate on {calibration.source}"
    for key, value in calibration.values.items():
        if key == "head_pursuit_heads":  # rankings of other concepts stay
            value = values.get(key, {}).get("value", {}) | value
        values[key] = {"value": value, "source": source}
    path.parent.mkdir(parents=True, exist_ok=True)
    for key, tensors in calibration.directions.items():
        file = path.with_name(f"{path.stem}.{key}.safetensors")
        write_directions(file, key.removesuffix("_directions"), model.config, tensors)
        values[key] = {"value": file.name, "source": source}
    write_text(path, dump_yaml({"name": name, "match": match, "values": values}))
    return path
