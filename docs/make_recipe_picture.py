"""Draw the chart of the README: what the shipped recipes do on images that nothing was chosen on.

python docs/make_recipe_picture.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlmfix.recipes import Recipe

HERE = Path(__file__).parent
RECIPES = HERE.parent / "configs" / "recipes"
DATA = "unusual scenes"
WIDTH, ROW, MARGIN, LABELS, GAP = 1120, 34, 24, 360, 60
INK, PALE, WRONG, FOUND = "#1b1f24", "#57606a", "#d1495b", "#2e86ab"
SCALES = {"CHAIRi": 0.2, "recall": 1.0}
WORDS = {"CHAIRi": "invented objects (CHAIRi)", "recall": "objects found (recall)"}


def main() -> None:
    recipes = [each for each in map(Recipe.read, sorted(RECIPES.glob("*.yaml"))) if each.task == "chair"]
    panels = [(recipe, _rows(recipe)) for recipe in recipes]
    height = sum(ROW * (len(rows) + 2) for _, rows in panels) + 2 * MARGIN
    canvas = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = MARGIN
    for recipe, rows in panels:
        images = next(each["images"] for each in recipe.evidence if each["data"] == DATA)
        _text(draw, (MARGIN, top), f"{recipe.name.split()[0]}, {images} unseen scenes", 20, INK)
        for column, words in enumerate(WORDS.values()):
            _text(draw, (_left(column), top), words, 16, PALE)
        top += ROW
        for label, own in rows:
            _text(draw, (MARGIN, top), label, 17, INK)
            for column, (name, color) in enumerate(zip(WORDS, (WRONG, FOUND), strict=True)):
                _bar(draw, _left(column), top, own[name], SCALES[name], color)
            top += ROW
        top += ROW
    _text(
        draw,
        (MARGIN, top - ROW // 2),
        "In parentheses: 95 % interval of the difference to greedy decoding, paired by image.",
        14,
        PALE,
    )
    canvas.save(HERE / "recipe.png", optimize=True)


def _rows(recipe: Recipe) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Greedy decoding, each part alone, the recipe: label and evidence by metric."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for each in recipe.evidence:
        if each["data"] == DATA and each["metric"] in WORDS:
            found.setdefault(str(each["row"]), {})[str(each["metric"])] = each
    shown = [label for label in found if label in ("greedy", "recipe") or label.endswith(" alone")]
    beams = f"{recipe.decoding['num_beams']} beams alone" if recipe.decoding else ""
    return [(beams if "beam" in label else label, found[label]) for label in shown]


def _bar(
    draw: ImageDraw.ImageDraw, left: int, top: int, cell: Mapping[str, Any], scale: float, color: str
) -> None:
    room = _left(1) - _left(0) - GAP - 170
    length = max(1, round(room * min(cell["value"] / scale, 1)))
    draw.rectangle((left, top + 2, left + length, top + ROW - 12), fill=color)
    text = f"{cell['value']:.3f}"
    if cell.get("low") is not None:
        text += f" ({cell['low']:+.3f} to {cell['high']:+.3f})"
    _text(draw, (left + length + 6, top + 2), text, 14, PALE)


def _left(column: int) -> int:
    return LABELS + column * (WIDTH - LABELS - MARGIN) // 2


def _text(draw: ImageDraw.ImageDraw, at: Sequence[float], text: str, size: int, color: str) -> None:
    draw.text((at[0], at[1]), text, fill=color, font=ImageFont.load_default(size=size))


if __name__ == "__main__":
    main()
