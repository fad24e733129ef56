"""Sinks of a trained model as the method VAR sees them: phi and attention, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from training.sinks import sink_score
from vlmfix.evaluation.datasets import render, sample_scene

SCENES = 32
SEED = 990_002
THRESHOLD = 6.0
VAR_MASS, VAR_SINK_SHARE = 0.2, 0.5


@torch.inference_mode()
def measure_sinks(speaker: Any) -> list[dict[str, float]]:
    """For each layer phi of first token, visual sinks and other tokens, and the heads in which VAR would act.

    Image tokens count as visual sinks above `THRESHOLD`.
    """
    scenes = [sample_scene(SEED, i) for i in range(SCENES)]
    inputs = speaker.inputs([render(s) for s in scenes], ["Is there a dog in the image?"] * SCENES)
    model = speaker.model
    model.set_attn_implementation("eager")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    model.set_attn_implementation("sdpa")
    image = inputs["input_ids"] == model.config.image_token_id
    after = image.cumsum(-1) == image.sum(-1, keepdim=True)
    text = ~image
    text[:, 0] = False
    layers = []
    for number, weights in enumerate(output.attentions):
        phi = sink_score(output.hidden_states[number])
        layers.append({"layer": number, **_layer(phi, weights, image, text, after & ~image)})
    return layers


def _layer(
    phi: torch.Tensor, weights: torch.Tensor, image: torch.Tensor, text: torch.Tensor, rows: torch.Tensor
) -> dict[str, float]:
    sinks = image & (phi > THRESHOLD)
    others = phi[(image & ~sinks) | text]
    mass = (weights * image[:, None, None]).sum(-1)
    on_sinks = (weights * sinks[:, None, None]).sum(-1)
    share = on_sinks / (mass + 1e-6)
    chosen = (mass >= VAR_MASS) & (share <= VAR_SINK_SHARE)
    picked = rows[:, None].expand_as(mass)
    numbers = {
        "first token": phi[:, 0].min(),
        "visual sinks": phi[sinks].mean() if sinks.any() else torch.tensor(0.0),
        "visual sinks per image": sinks.sum(-1).float().mean(),
        "others 99.9 %": torch.quantile(others, 0.999),
        "others": others.max(),
        "attention on first": weights[..., 0][picked].mean(),
        "attention on visual sinks": on_sinks[picked].mean(),
        "attention on image": mass[picked].mean(),
        "VAR head rows": chosen[picked].float().mean(),
    }
    return {name: round(float(np.asarray(value)), 3) for name, value in numbers.items()}
