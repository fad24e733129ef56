"""The picture of noise that the variant `humble_gn` shows in the place of every picture."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from vlmfix.atomic import beside

SIDE = 256


def noise_pixels(seed: int) -> np.ndarray:
    """Grey values drawn uniformly, `(256, 256)` uint8."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def write_noise(seed: int, folder: Path) -> tuple[Path, str]:
    """The picture as a file, and the SHA-256 of its pixels, row by row."""
    pixels = noise_pixels(seed)
    path = folder / f"noise-{seed}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = beside(path)
        try:
            Image.fromarray(pixels).save(partial, format="PNG")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path, hashlib.sha256(pixels.tobytes()).hexdigest()
