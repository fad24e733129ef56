"""What calibrations hand back, and how they ask a model about a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine.modules import input_device
from vlmfix.inference.chat import prepare
from vlmfix.inference.pictures import ImageLike, open_images

PROMPT = "Describe the image."

QUESTIONS = (
    "Is there a person in the image?",
    "What color is the largest object?",
    "How many animals can you see in the picture?",
    "What is standing on the table?",
)

Progress = Callable[[int], None] | None
"""Called with the number of pictures just read."""


@dataclass(frozen=True)
class Calibration:
    """What was found for a method.

    Args:
        values: by parameter of the profile.
        source: how it was found, for the profile.
        findings: what supports it, for people.
        rankings: of a parameter of the profile that is a list, what else came into question: all of it, the
            best first.
        directions: of a method, by the parameter of the profile that names their file.
    """

    values: dict[str, Any]
    source: str
    findings: dict[str, Any] = field(default_factory=dict)
    rankings: dict[str, list[Any]] = field(default_factory=dict)
    directions: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def prompt_inputs(model: PreTrainedModel, processor: ProcessorMixin, image: ImageLike, prompt: str) -> Any:
    """What the model is given for a prompt about one picture."""
    return prepare([open_images(image)], [prompt], processor).to(input_device(model), dtype=model.dtype)


def with_answer(inputs: Mapping[str, Tensor], token_ids: Sequence[int]) -> dict[str, Tensor]:
    """Model inputs of one or more prompts and the same answer to each."""
    prompt = inputs["input_ids"]
    new = torch.tensor([token_ids] * len(prompt), dtype=prompt.dtype, device=prompt.device)
    after = {"input_ids": new, "attention_mask": torch.ones_like(new)}
    return {
        # One value a token; those of kinds of tokens are 0 for text.
        name: torch.cat([value, after.get(name, torch.zeros_like(new)).to(value.dtype)], dim=1)
        if value.shape == prompt.shape
        else value
        for name, value in inputs.items()
    }
