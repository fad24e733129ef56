"""Finding what a checkpoint without a profile needs, from a few image prompts, and writing it down."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.atomic import write_text
from vlmfix.calibration import generated_attention, heads, register_neurons
from vlmfix.calibration.concepts import ConceptWords, calibrate_concept_heads
from vlmfix.calibration.directions import CaptionPair, calibrate_nullu, calibrate_vti
from vlmfix.calibration.exit_layer import calibrate_exit_layer
from vlmfix.calibration.generated_attention import calibrate_generated_attention
from vlmfix.calibration.heads import AnnotatedImage, calibrate_heads
from vlmfix.calibration.register_neurons import calibrate_registers
from vlmfix.calibration.results import (
    PROMPT,
    QUESTIONS,
    Calibration,
    Progress,
    prompt_inputs,
)
from vlmfix.calibration.schedules import change_point, dense_layers, kept_ratios
from vlmfix.calibration.sink_heads import YesNoQuestion, calibrate_sink_heads
from vlmfix.engine import compatibility, tokens
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.attention.gift import GIFT, gaze_shifts
from vlmfix.methods.attention.var import DEFAULT_THRESHOLD, sink_scores
from vlmfix.methods.base import Method
from vlmfix.methods.registry import get_method
from vlmfix.models.directions import write_directions
from vlmfix.models.match import file_name, match_of
from vlmfix.models.profiles import Profile, user_directory
from vlmfix.settings import dump_yaml

# Enhanced layers of LLaVA-1.5-7B as shares of its 32 layers: 12 to 22.
_ENHANCED = (12 / 32, 22 / 32)

# Image tokens whose curves are searched for change points: 58 of 576.
_CURVES = 0.1

_BUDGETS = (11, 22, 33, 50, 70)


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


def sink_threshold(hidden_size: int) -> float:
    """20 where it can be reached: scores never exceed sqrt(hidden size), so small models get half of that."""
    return round(min(DEFAULT_THRESHOLD, math.sqrt(hidden_size) / 2), 2)


def calibrate_sinks(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[ImageLike], progress: Progress
) -> Calibration:
    """Find the sink dimensions for VAR (arXiv 2503.03321; the rule is this library's own).

    Dimensions are kept whose RMS-normalised activation in the first token exceeds the threshold in most of
    the middle half of the layers and prompts.
    """
    config = model.config.get_text_config()
    threshold = sink_threshold(config.hidden_size)
    layers = range(config.num_hidden_layers // 4, max(3 * config.num_hidden_layers // 4, 1))
    first_tokens, image_tokens = [], []
    for image in images:
        states, is_image = _middle_states(model, processor, image, layers)
        first_tokens.append(states[:, 0])
        image_tokens.append(states[:, is_image])
        if progress is not None:
            progress(1)
    first = torch.stack(first_tokens)
    massive = first.abs() * torch.rsqrt(first.square().mean(dim=-1, keepdim=True) + 1e-6)
    dimensions = ((massive > threshold).float().mean(dim=(0, 1)) > 0.5).nonzero().squeeze(1).tolist()
    if not dimensions:
        raise ValueError(
            f"no dimension of the first token exceeds {threshold:g} in most middle layers (the largest has a "
            f"median of {massive.amax(dim=-1).median():.1f}); this model has no sinks that VAR could use"
        )
    image_scores = torch.cat([sink_scores(states, dimensions).flatten() for states in image_tokens])
    first_score = round(float(sink_scores(first, dimensions).median()), 2)
    share = round(float((image_scores > threshold).float().mean()), 4)
    return Calibration(
        {"sink_dimensions": dimensions, "sink_threshold": threshold},
        f"{len(images)} image prompts: first token at {first_score}, {100 * share:.1f} % of the image tokens "
        f"are sinks; threshold min(20, sqrt(hidden size) / 2)",
        {"first token score": first_score, "visual sink share": share},
    )


def _middle_states(
    model: PreTrainedModel, processor: ProcessorMixin, image: ImageLike, layers: range
) -> tuple[Tensor, Tensor]:
    """Residual streams entering the layers, `(layers, tokens, hidden)`, and which tokens are image."""
    inputs = prompt_inputs(model, processor, image, PROMPT)
    with torch.no_grad():
        hidden_states = model(**inputs, output_hidden_states=True).hidden_states
    states = torch.stack([hidden_states[layer][0].float().cpu() for layer in layers])
    return states, (inputs["input_ids"][0] == tokens.image_token(model.config)).cpu()


def calibrate_gift(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[ImageLike], progress: Progress
) -> Calibration:
    """Find the layers for GIFT (arXiv 2510.22067): the map from the layer whose gaze shifts are largest.

    Of the middle half of the layers, since the first ones shift by the word alone (this library's own rule).
    The paper chooses the enhanced layers by eye; here they lie at the depth of those of LLaVA-1.5-7B.
    """
    layers = model.config.get_text_config().num_hidden_layers
    observer = _GazeShifts(saliency_layer=0, enhanced_layers=(0, 0))
    totals = torch.zeros(layers)
    for number, image in enumerate(images):
        inputs = prompt_inputs(model, processor, image, QUESTIONS[number % len(QUESTIONS)])
        with observer(model, processor), torch.no_grad():
            model(**inputs)
        totals += torch.stack(observer.seen).cpu()
        observer.seen.clear()
        if progress is not None:
            progress(1)
    start, end = layers // 4, max(3 * layers // 4, 1)
    first, last = (min(round(share * layers), layers - 1) for share in _ENHANCED)
    means = [round(float(total), 4) for total in totals / len(images)]
    return Calibration(
        {
            "gift_saliency_layer": start + int(totals[start:end].argmax()),
            "gift_enhanced_layers": [first, last],
        },
        f"{len(images)} image prompts: largest total positive change of attention to the image in the middle "
        "half of the layers; enhanced layers at the depth of those of LLaVA-1.5-7B",
        {"total positive change by layer": means},
    )


@dataclass(frozen=True, kw_only=True)
class _GazeShifts(GIFT):
    """Total positive change of attention to the image at informative words, of every layer of a prefill."""

    edits: ClassVar = False

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return self._reading_rows(context, layer)

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        words = context.state[self, "words"].to(weights.device)[:, self._reading_rows(context, layer).index]
        shifts = gaze_shifts(weights, weights.roll(1, dims=2)) * words[:, None, :, None]
        self.seen.append(shifts[..., context.layout.image_tokens[0]].sum())

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return False


def calibrate_adaptinfer(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[ImageLike], progress: Progress
) -> Calibration:
    """Find schedules for AdaptInfer (arXiv 2508.06084): layers where attention to the image changes.

    Of each prompt, the tenth of the image tokens with the largest attention gives curves of cumulative
    attention over the layers; each has one change point. The layers where these are densest are pruned. How
    many tokens stay is this library's own rule: the shares of LLaVA-1.5-7B, scaled to a mean share over the
    layers.
    """
    layers = model.config.get_text_config().num_hidden_layers
    found: Counter[int] = Counter()
    for image in images:
        observer = _TextToImage()
        with observer(model), torch.no_grad():
            model(**prompt_inputs(model, processor, image, PROMPT))
        attention = torch.stack([seen.cpu() for seen in observer.seen])
        count = max(1, round(_CURVES * attention.shape[1]))
        chosen = attention.sum(dim=0).topk(count).indices
        curves = attention[:, chosen].cumsum(dim=0).T.double().numpy()
        found.update(change_point(curve) - 1 for curve in curves)
        if progress is not None:
            progress(1)
    prune_layers = dense_layers(found, layers)
    schedules = {}
    for budget in _BUDGETS:
        ratios = kept_ratios(budget / 100, layers, prune_layers)
        if ratios is not None:
            schedules[f"{budget}%"] = {"prune_layers": list(prune_layers), "kept_ratios": ratios}
    if not schedules:
        raise ValueError(
            f"attention to the image changes at layers {prune_layers} of {layers}, too late for a mean of "
            f"{_BUDGETS[-1]} % of the image tokens per layer; this model has no schedule worth having"
        )
    histogram = {layer: found[layer] for layer in sorted(found)}
    return Calibration(
        {"adaptinfer_schedules": schedules},
        f"{len(images)} image prompts: densest change points of cumulative attention to the image; budgets "
        "are mean shares of the image tokens per layer",
        {"change points by layer": histogram, "prune layers": prune_layers, "budgets": list(schedules)},
    )


@dataclass(frozen=True, kw_only=True)
class _TextToImage(Method):
    """Attention of the text after the image to each image token, layer by layer, for one prompt."""

    edits: ClassVar = False

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return context.layout.rows_after_last_image

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        image = context.layout.image_tokens[0].to(weights.device)
        self.seen.append(weights[0].mean(dim=(0, 1))[image])


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
