"""An explanation as one HTML page that needs nothing but a browser."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import math
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Template
from markupsafe import Markup
from PIL import Image

from vlmfix.evaluation.report.page_style import page_environment, page_style
from vlmfix.evaluation.report.plots import Plot
from vlmfix.explanation.answers import ExplainedAnswer
from vlmfix.explanation.arrays import ExplanationArrays
from vlmfix.explanation.export import rounded
from vlmfix.explanation.figures import draw
from vlmfix.explanation.formulas import IMAGE, SINKS
from vlmfix.explanation.knockout import RULES
from vlmfix.explanation.page_data import page_data, shown

MAX_SIDE = 768
"""Of the picture on the page, in pixels."""

_GALLERY = 12
_SMALL = 150  # side of a picture in the gallery


def page(explanation: ExplanationArrays) -> str:
    """The page; equal for equal explanations."""
    script = asset("explain.js")
    data = json.dumps(rounded(page_data(explanation)), sort_keys=True, allow_nan=False)
    return _template().render(
        told=explanation,
        title=f"What {explanation.model} looked at",
        sentences=sentences(explanation),
        answers=[_strip(each, explanation) for each in (explanation.plain, explanation.method) if each],
        picture=_jpeg(explanation.picture, MAX_SIDE),
        gallery=[
            (explanation.plain.words[place].text, _overlay(explanation, place))
            for place in shown(explanation, _GALLERY)
        ],
        plots={kind: _plot(explanation, kind) for kind in ("flow", "heads", "sinks", "cuts", "faithfulness")},
        rankings=_rankings(explanation),
        judged=_judged(explanation),
        parting=_parting(explanation),
        sinks=explanation.sinks,
        is_sink=explanation.sinks.is_sink.sum(axis=1).tolist(),
        rules=RULES,
        style=page_style(),
        own_style=asset("explain.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(data.replace("<", "\\u003c")),
    )


def asset(name: str) -> Markup:
    """A file beside the templates, as it is."""
    return Markup(files("vlmfix.explanation").joinpath("templates", name).read_text(encoding="utf-8"))


@functools.cache
def _template() -> Template:
    environment = page_environment("vlmfix.explanation", "vlmfix.evaluation.report")
    environment.filters |= {
        "number": lambda value, digits=2: f"{float(value):.{digits}f}".replace("-", "\u2212")
    }
    return environment.get_template("explain.html.j2")


def _strip(told: ExplainedAnswer, explanation: ExplanationArrays) -> dict[str, Any]:
    """The words of an answer as the page writes them."""
    parting = None if explanation.compared is None else explanation.compared.parting
    parted = None if parting is None else parting.place
    marks = {
        word: "present" if each.is_present else "invented" for each in told.named or () for word in each.words
    }
    words = [
        {
            "text": word.text,
            "is_content": word.is_content,
            "mark": marks.get(place, ""),
            "parts": parted in word.tokens,
        }
        for place, word in enumerate(told.words)
    ]
    return {"label": told.label, "text": told.text, "words": words, "is_judged": told.named is not None}


def sentences(explanation: ExplanationArrays) -> list[str]:
    """What there is to know at first sight."""
    plain, said = explanation.plain, []
    content = [place for place, word in enumerate(plain.words) if word.is_content]
    if plain.image_gain is not None and content:
        gains = {place: plain.of_word(plain.image_gain, place) for place in content}
        most, least = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
        said.append(
            f"The picture matters most for “{plain.words[most].text}”: with it the word is "
            f"{_times(gains[most])} as likely. It matters least for “{plain.words[least].text}” "
            f"({_times(gains[least])})."
        )
    invented = [each.category for each in plain.named or () if not each.is_present]
    if plain.named is not None:
        said.append(
            f"Not in the picture, but in the answer: {', '.join(dict.fromkeys(invented))}."
            if invented
            else "Every object that the answer names is in the picture."
        )
    compared = explanation.compared
    if compared is not None and explanation.method is not None:
        if compared.parting is None:
            same = explanation.method.text == plain.text
            how = "gives the same answer" if same else "begins with the same words"
            said.append(
                f"{explanation.method_name} {how}; the closest call was a margin of {plain.margin.min():.2f}."
            )
        else:
            one, other = _parted(explanation)
            choice = compared.parting.choice
            said.append(
                f"{explanation.method_name} changes its mind at “{other}”, where plain decoding writes "
                f"“{one}”: plainly “{one}” leads by {choice.plain_margin:.2f}, under the method “{other}” by "
                f"{choice.method_margin:.2f}."
            )
    if explanation.faithfulness is not None:
        name = explanation.maps[0]
        word = plain.words[explanation.word].text
        said.append(f"The {name} map of “{word}”, tested: {explanation.faithfulness.verdict(name)}.")
    return said


def _times(gain: float) -> str:
    factor = math.exp(gain)
    return f"{factor:,.0f} times" if factor >= 9.5 else f"{factor:.1f} times"


def _parted(explanation: ExplanationArrays) -> tuple[str, str]:
    """The words in which two answers part."""
    assert explanation.compared is not None
    assert explanation.compared.parting is not None
    assert explanation.method is not None
    place = explanation.compared.parting.place
    one, other = (
        next(word.text for word in told.words if place in word.tokens)
        for told in (explanation.plain, explanation.method)
    )
    return one, other


def _parting(explanation: ExplanationArrays) -> list[tuple[str, float, float]]:
    """The likeliest tokens where two answers part, with both probabilities."""
    if explanation.compared is None or explanation.compared.parting is None:
        return []
    own = explanation.compared.parting
    rows = list(zip(own.tokens, own.plain, own.method, strict=True))
    return sorted(rows, key=lambda row: -max(row[1:]))


def _plot(explanation: ExplanationArrays, kind: str) -> Plot | None:
    missing = {
        "cuts": not explanation.cuts,
        "faithfulness": explanation.faithfulness is None,
        "flow": explanation.plain.shares is None,
    }
    return None if missing.get(kind, False) else draw(explanation, kind, explanation.word)


def _rankings(explanation: ExplanationArrays) -> dict[str, Any]:
    """The heads that the image moves most, those that look at it most, and how far both orders agree."""
    from scipy.stats import spearmanr

    sums, divergence = explanation.plain.by_head, explanation.divergence
    if sums is None or divergence is None:
        return {}
    looks, moved = sums[..., IMAGE] + sums[..., SINKS], divergence[list(explanation.layers)]

    def best(values: np.ndarray) -> list[tuple[str, float]]:
        order = np.argsort(-values.ravel(), kind="stable")[: min(20, max(5, values.size // 8))]
        places = [np.unravel_index(each, values.shape) for each in order]
        return [(f"{explanation.layers[layer]}:{head}", float(values[layer, head])) for layer, head in places]

    return {
        "rows": list(zip(best(moved), best(looks), strict=True)),
        "correlation": float(spearmanr(moved.ravel(), looks.ravel()).statistic),
    }


def _judged(explanation: ExplanationArrays) -> list[dict[str, Any]]:
    """Figures of the maps of each object that has a mask."""
    words = explanation.plain.words
    phrases = {
        each.word: " ".join(words[own].text for own in each.words) for each in explanation.plain.named or ()
    }
    return [
        {"word": phrases[word], "map": name, "figures": figures}
        for word, maps in explanation.judged.items()
        for name, figures in maps.items()
    ]


def _overlay(explanation: ExplanationArrays, word: int) -> str:
    """A small picture under the band map of a word."""
    import matplotlib

    small = explanation.picture.copy()
    small.thumbnail((_SMALL, _SMALL), Image.Resampling.LANCZOS)
    scale = small.width / explanation.picture.width
    left, top, right, bottom = (round(each * scale) for each in explanation.cells.box)
    cells = explanation.cells.of_tokens(explanation.values("band", word))
    size = max(1, right - left), max(1, bottom - top)
    grid = Image.fromarray((cells / (cells.max() or 1)).astype(np.float32))
    area = grid.resize(size, Image.Resampling.BILINEAR)
    seen = Image.new("F", small.size)
    seen.paste(area, (left, top))
    strength = np.asarray(seen)
    colours = matplotlib.colormaps["viridis"](strength)[..., :3] * 255
    alpha = (0.25 + 0.5 * strength)[..., None]
    mixed = np.asarray(small) * (1 - alpha) + colours * alpha
    return _jpeg(Image.fromarray(mixed.astype(np.uint8)), _SMALL)


def _jpeg(picture: Image.Image, side: int) -> str:
    """A picture for the page, no larger than it has to be."""
    shown = picture.copy()
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
