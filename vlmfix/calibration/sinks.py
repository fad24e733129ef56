"""Finding the sink dimensions of a checkpoint, for VAR."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import PROMPT, Calibration, Progress, prompt_inputs
from vlmfix.engine import tokens
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.attention.var import DEFAULT_THRESHOLD, sink_scores


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
