"""Draw the picture of the README: the demo scene, and what the tiny model says of it plainly and with VAR.

python docs/make_picture.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.text import Text

import vlmfix
from vlmfix.cli.display import mark_differences
from vlmfix.evaluation.datasets import demo_scene, render

HERE = Path(__file__).parent
SCALE = 3
PANEL = 380
MARGIN = 20
INK, PALE, MARK = "#1b1f24", "#57606a", "#ffd8a8"


def main() -> None:
    scene = render(demo_scene())
    scene.save(HERE / "scene.png")
    model, processor = vlmfix.load("tiny-llava")
    answers = {
        "greedy": vlmfix.generate(model, processor, scene, "Describe the image."),
        "with VAR": vlmfix.generate(model, processor, scene, "Describe the image.", vlmfix.VAR()),
    }
    side = SCALE * scene.height
    width = SCALE * scene.width + 2 * PANEL + 4 * MARGIN
    canvas = Image.new("RGB", (width, side + 2 * MARGIN), "white")
    large = scene.resize((SCALE * scene.width, side), Image.Resampling.LANCZOS)
    canvas.paste(large, (MARGIN, MARGIN))
    for column, (name, text) in enumerate(zip(answers, mark_differences(*answers.values()), strict=True)):
        left = SCALE * scene.width + 2 * MARGIN + column * (PANEL + MARGIN)
        write(ImageDraw.Draw(canvas), name, text, left)
    canvas.save(HERE / "demo.png", optimize=True)


def write(draw: ImageDraw.ImageDraw, title: str, text: Text, left: int) -> None:
    """One answer, wrapped, with the marked words on a coloured ground."""
    title_font, font = ImageFont.load_default(size=20), ImageFont.load_default(size=18)
    draw.text((left, MARGIN), title, fill=PALE, font=title_font)
    x, y = float(left), MARGIN + 36
    for word in text.split(" "):
        length = draw.textlength(word.plain + " ", font=font)
        if x + length > left + PANEL:
            x, y = float(left), y + 27
        if word.spans:
            draw.rectangle((x - 2, y - 1, x + length - 3, y + 22), fill=MARK)
        draw.text((x, y), word.plain, fill=INK, font=font)
        x += length


if __name__ == "__main__":
    main()
