"""Answers and pictures for a terminal."""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text


def mark_differences(first: str, second: str, *, style: str = "bold reverse") -> tuple[Text, Text]:
    """Both texts, with the words marked that the other one lacks at this place."""
    words = first.split(), second.split()
    texts = Text(), Text()
    for operation, *bounds in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for text, own, (start, end) in zip(texts, words, (bounds[:2], bounds[2:]), strict=True):
            for word in own[start:end]:
                text.append(word, style="" if operation == "equal" else style)
                text.append(" ")
    return texts


def thumbnail(image: Image.Image, columns: int = 48) -> Text:
    """The picture in half blocks, two pixels a character cell."""
    width = min(columns, image.width)
    rows = max(1, round(image.height * width / image.width / 2))
    small = image.convert("RGB").resize((width, 2 * rows), Image.Resampling.LANCZOS)
    pixels = np.asarray(small)
    text = Text(no_wrap=True)
    for y in range(0, small.height, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*pixels[y + below, x].tolist()) for below in (0, 1))
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text
