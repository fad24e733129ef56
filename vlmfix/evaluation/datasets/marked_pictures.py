"""Pictures with marks drawn on them, made once and kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from vlmfix.atomic import beside
from vlmfix.evaluation.files.hashing import digest
from vlmfix.evaluation.files.readers import sha256_of
from vlmfix.inference.pictures import open_images


def marked_picture(
    source: Path, marks: Any, draw: Callable[[Image.Image], Image.Image], cache: str | Path
) -> Path:
    """A picture with marks as a file whose name is the SHA-256 of the picture and the marks.

    Args:
        source: the picture without marks.
        marks: a JSON value that says all about the marks, the way in which they are drawn included.
        draw: makes the picture with marks from the one without, in RGB and upright.
        cache: folder that keeps such pictures.

    Returns:
        The file; of a picture that cannot be opened, the picture itself, which fails with its reason when it
        is asked about.
    """
    try:
        name = digest([sha256_of(source), marks])
        path = Path(cache) / f"{name}.png"
        if path.exists():
            return path
        [picture] = open_images(source)
    except (OSError, ValueError):
        return source
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        draw(picture).save(partial, format="PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
