"""Draw the picture of the README: the demo scene, and what the tiny model says of it plainly and with VAR.

python docs/make_picture.py
"""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import vlmfix
from evals.data import demo_scene, render

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
    words = {name: text.split() for name, text in answers.items()}
    marked = differing(*words.values())
    for column, (name, each) in enumerate(words.items()):
        left = SCALE * scene.width + 2 * MARGIN + column * (PANEL + MARGIN)
        write(ImageDraw.Draw(canvas), name, each, marked[column], left)
    canvas.save(HERE / "demo.png", optimize=True)


def differing(first: list[str], second: list[str]) -> tuple[set[int], set[int]]:
    """Positions of the words that the other answer lacks."""
    marked: tuple[set[int], set[int]] = set(), set()
    for operation, *bounds in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if operation != "equal":
            marked[0].update(range(*bounds[:2]))
            marked[1].update(range(*bounds[2:]))
    return marked


def write(draw: ImageDraw.ImageDraw, title: str, words: list[str], marked: set[int], left: int) -> None:
    """One answer, wrapped, with the marked words on a coloured ground."""
    title_font, font = ImageFont.load_default(size=20), ImageFont.load_default(size=18)
    draw.text((left, MARGIN), title, fill=PALE, font=title_font)
    x, y = float(left), MARGIN + 36
    for index, word in enumerate(words):
        length = draw.textlength(word + " ", font=font)
        if x + length > left + PANEL:
            x, y = float(left), y + 27
        if index in marked:
            draw.rectangle((x - 2, y - 1, x + draw.textlength(word, font=font) + 2, y + 22), fill=MARK)
        draw.text((x, y), word, fill=INK, font=font)
        x += length


if __name__ == "__main__":
    main()
