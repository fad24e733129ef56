"""Finding what a checkpoint without a profile needs, from a few image prompts, and writing it down."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.generation import ImageLike, open_images
from vlmfix.methods.var import DEFAULT_THRESHOLD, sink_scores
from vlmfix.models.profiles import user_directory
from vlmfix.prompts import prepare
from vlmfix.runtime import support

PROMPT = "Describe the image."


@dataclass(frozen=True)
class SinkCalibration:
    """Sink dimensions of a checkpoint and how clearly they stand out.

    Args:
        sink_dimensions: massive in the first token in most middle layers and prompts.
        sink_threshold: bound on the RMS-normalised activation that separates sinks.
        first_token_score: median score of the first token over middle layers and prompts.
        visual_sink_share: share of the image tokens above the threshold, over middle layers and prompts.
        prompts: number of image prompts used.
    """

    sink_dimensions: tuple[int, ...]
    sink_threshold: float
    first_token_score: float
    visual_sink_share: float
    prompts: int


def sink_threshold(hidden_size: int) -> float:
    """20 where it can be reached: scores never exceed sqrt(hidden size), so small models get half of that."""
    return round(min(DEFAULT_THRESHOLD, math.sqrt(hidden_size) / 2), 2)


def calibrate_sinks(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[ImageLike],
    *,
    progress: Callable[[int], None] | None = None,
) -> SinkCalibration:
    """Find the sink dimensions of a checkpoint (arXiv 2503.03321; the rule is this library's own).

    Dimensions are kept whose RMS-normalised activation in the first token exceeds the threshold in most of
    the middle half of the layers and prompts.

    Args:
        model: a stock image-text-to-text model.
        processor: its processor.
        images: 20 to 50 ordinary pictures.
        progress: called with the number of prompts just read.

    Raises:
        ValueError: no images, or no dimension stands out.
    """
    support.check_model(model)
    if not images:
        raise ValueError("no images to calibrate on; give 20 to 50 ordinary pictures")
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
    return SinkCalibration(
        sink_dimensions=tuple(dimensions),
        sink_threshold=threshold,
        first_token_score=round(float(sink_scores(first, dimensions).median()), 2),
        visual_sink_share=round(float((image_scores > threshold).float().mean()), 4),
        prompts=len(images),
    )


def _middle_states(
    model: PreTrainedModel, processor: ProcessorMixin, image: ImageLike, layers: range
) -> tuple[Tensor, Tensor]:
    """Residual streams entering the layers, `(layers, tokens, hidden)`, and which tokens are image."""
    inputs = prepare([open_images(image)], [PROMPT], processor).to(model.device, dtype=model.dtype)
    with torch.no_grad():
        hidden_states = model(**inputs, output_hidden_states=True).hidden_states
    states = torch.stack([hidden_states[layer][0].float().cpu() for layer in layers])
    return states, (inputs["input_ids"][0] == support.image_token(model.config)).cpu()


def write_profile(
    model: PreTrainedModel, calibration: SinkCalibration, name: str, path: Path | None = None
) -> Path:
    """Write a profile file that `vlmfix.VAR` finds by the shape of the model.

    Args:
        model: the model that was calibrated.
        calibration: what to write.
        name: what people call the checkpoint.
        path: the file; None: in the user's own directory, where every later run looks first.
    """
    text = model.config.get_text_config()
    source = (
        f"vlmfix calibrate on {calibration.prompts} image prompts: first token at "
        f"{calibration.first_token_score}, {100 * calibration.visual_sink_share:.1f} % of the image tokens "
        "are sinks"
    )
    shape = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size")
    content = {
        "name": name,
        "match": {
            "model_type": model.config.model_type,
            "text_config": {key: getattr(text, key) for key in shape},
        },
        "values": {
            "sink_dimensions": {"value": list(calibration.sink_dimensions), "source": source},
            "sink_threshold": {
                "value": calibration.sink_threshold,
                "source": "min(20, sqrt(hidden size) / 2)",
            },
        },
    }
    if path is None:
        path = user_directory() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-').lower()}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
