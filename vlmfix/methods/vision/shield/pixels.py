"""Pixels as a processor of images normalises them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def _normalisation(processor: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that a processor gives pixels in [0, 1], `(channels, 1, 1)` each."""
    own = processor.image_processor
    if not own.do_normalize:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (own.image_mean, own.image_std))
    return mean, deviation


def bounds(processor: Any) -> tuple[Tensor, Tensor]:
    """The least and the greatest pixels that a picture can have, normalised, `(channels, 1, 1)` each."""
    mean, deviation = _normalisation(processor)
    return -mean / deviation, (1 - mean) / deviation


def as_picture(pixels: Tensor, processor: Any) -> Image.Image:
    """Normalised pixels as a picture."""
    mean, deviation = _normalisation(processor)
    shown_pixels = (pixels.float().cpu() * deviation + mean).clamp(0, 1) * 255
    return Image.fromarray(shown_pixels.round().permute(1, 2, 0).numpy().astype(np.uint8))
