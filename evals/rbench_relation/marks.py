"""Marks of the two objects of a question: in its words, and on its picture (arXiv 2406.16449)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .questions import Box

BOX, MASK = "bounding box", "mask"
"""What a mark is called in a question."""

LINE_WIDTH = 4
BOX_COLORS = ((255, 0, 0), (0, 255, 0))
MASK_COLORS = ((250, 0, 45), (100, 250, 0))
MASK_ALPHA = 120
"""Width of the lines in pixels; colours of subject and object; opacity of masks, of 255."""


def marked_text(text: str, subject: str, object: str, mark: str) -> str | None:
    """A question that tells which of its objects has which mark.

    The subject is marked at its first place and the object at its last, as whole words in any case.

    Args:
        text: the question.
        subject: name of the object with the red mark.
        object: name of the object with the green mark.
        mark: `BOX` or `MASK`.

    Returns:
        The question; None where the two names have no places apart from each other.
    """
    subjects, objects = ([each.span() for each in _whole_words(name, text)] for name in (subject, object))
    if not subjects or not objects:
        return None
    marks = [(subjects[0], f" in red {mark}"), (objects[-1], f" in green {mark}")]
    (first, _), (last, _) = sorted(marks)
    if last[0] < first[1]:
        return None
    for (_, end), words in sorted(marks, reverse=True):
        text = text[:end] + words + text[end:]
    return text


def official_text(text: str, subject: str, object: str, mark: str) -> str:
    """The same as mrwu-mac/R-Bench does it: wherever the letters of a name occur, first the subject's.

    Where the object's letters occur in the subject's name or in the words of its mark, or both have one name,
    the question is damaged.
    """
    for name, color in ((subject.lower(), "red"), (object.lower(), "green")):
        text = text.replace(name, f"{name} in {color} {mark}")
    return text


def with_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A picture with a red box around the subject and a green one around the object."""
    marked = picture.copy()
    draw = ImageDraw.Draw(marked)
    for box, color in zip(boxes, BOX_COLORS, strict=True):
        draw.rectangle(pixels(box, picture.size), outline=color, width=LINE_WIDTH)
    return marked


def pixels(box: Box, size: tuple[int, int]) -> Box:
    """A box in pixels of a picture of this width and height."""
    left, top, right, bottom = box
    width, height = size
    return left * width, top * height, right * width, bottom * height


def with_masks(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture with the subject coloured red and the object green.

    Args:
        picture: in RGB.
        mask: 1 where the subject is and 2 where the object is; of any size.
    """
    regions = np.asarray(mask.resize(picture.size, Image.Resampling.NEAREST))
    marked = picture.copy()
    for number, color in enumerate(MASK_COLORS, 1):
        opacity = Image.fromarray(np.where(regions == number, MASK_ALPHA, 0).astype(np.uint8))
        marked.paste(color, mask=opacity)
    return marked


def _whole_words(name: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))
