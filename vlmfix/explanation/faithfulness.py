"""Deletion and insertion: whether the cells that a map calls important are (RISE, arXiv 1806.07421)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from vlmfix.calibration.results import with_answer
from vlmfix.engine.modules import input_device
from vlmfix.explanation.cells import Cells
from vlmfix.explanation.judging import area_under_curve, centred_gaussian
from vlmfix.explanation.reading import Reader
from vlmfix.inference.chat import prepare

STEPS, RANDOM_ORDERS, MIN_EFFECT = 16, 5, 0.05
_BLUR = 5 / 224  # standard deviation, as a share of the longer side
_BATCH, _TOKENS = 16, 16384  # pictures, and tokens of all of them, that are read at a time

Score = Callable[[Iterable[Image.Image]], list[float]]
"""From pictures, of which few are held at a time, to the probability of a word that is the same for all."""


@dataclass(frozen=True)
class Curves:
    """Curves of one order in which cells leave, or come.

    Args:
        deletion: probability of the word with more and more cells away, `steps + 1` values.
        insertion: the same with more and more cells there.
    """

    deletion: tuple[float, ...]
    insertion: tuple[float, ...]

    @property
    def areas(self) -> tuple[float, float]:
        """Under both; a good order has a small first and a large second one."""
        return area_under_curve(self.deletion), area_under_curve(self.insertion)


@dataclass(frozen=True)
class Faithfulness:
    """How maps of a word stand the test.

    Args:
        full: probability of the word with the whole picture, and `blurred` and `plain` with nothing of it
            but a blur, and but its mean colour.
        curves: by the name of the map; also "centre" (from the middle outwards), and "reverse" (the first map
            from its lowest cell on).
        random: of random orders.
    """

    full: float
    blurred: float
    plain: float
    curves: dict[str, Curves]
    random: tuple[Curves, ...]

    @property
    def has_effect(self) -> bool:
        """Whether the picture moves the word at all; if not, no map of it can be faithful."""
        return min(abs(self.full - self.plain), abs(self.full - self.blurred)) >= MIN_EFFECT

    def gains(self, name: str) -> tuple[float, float]:
        """Area of deletion below that of random orders, and of insertion above; above 0 is better than
        chance."""
        deletion, insertion = self.curves[name].areas
        random = np.mean([each.areas for each in self.random], axis=0)
        return float(random[0] - deletion), float(insertion - random[1])

    def verdict(self, name: str) -> str:
        """What the curves of a map say, in words."""
        if not self.has_effect:
            return "the picture hardly moves this word, so no map of it can be faithful"
        areas = np.array([each.areas for each in self.random])
        deletion, insertion = self.curves[name].areas
        better = [deletion < areas[:, 0].min(), insertion > areas[:, 1].max()]
        worse = [deletion > areas[:, 0].max(), insertion < areas[:, 1].min()]
        tests = ("deletion", "insertion")
        if all(better):
            return "better than every random order, by deletion and by insertion"
        parts = [
            f"{'better than every' if good else 'worse than every' if bad else 'not distinguishable from a'} "
            f"random order by {test}"
            for test, good, bad in zip(tests, better, worse, strict=True)
        ]
        return "; ".join(parts)


def judge_maps(
    score: Score,
    picture: Image.Image,
    cells: Cells,
    maps: dict[str, np.ndarray],
    *,
    steps: int = STEPS,
    random_orders: int = RANDOM_ORDERS,
    seed: int = 0,
) -> Faithfulness:
    """Take cells of a picture away in the order of maps, and bring them back.

    Deleted cells get the mean colour of the picture; insertion begins with a blurred one.

    Args:
        score: of pictures.
        picture: in RGB.
        cells: of its image tokens.
        maps: of the cells by name, `(rows, columns)` each; ties go in raster order.
        steps: chunks of equal size in which cells go.
        random_orders: with which the maps are compared, from `seed`.
    """
    pixels = np.asarray(picture)
    gone = np.broadcast_to(pixels.reshape(-1, 3).mean(axis=0).round().astype(np.uint8), pixels.shape)
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(_BLUR * max(picture.size))))
    rng, count = np.random.default_rng(seed), cells.shape[0] * cells.shape[1]
    orders = {name: np.argsort(-grid.ravel(), kind="stable") for name, grid in maps.items()}
    centre = centred_gaussian((cells.shape[1], cells.shape[0])).ravel()
    orders["centre"] = np.argsort(-centre, kind="stable")
    orders["reverse"] = next(iter(orders.values()))[::-1]
    randoms = [rng.permutation(count) for _ in range(random_orders)]
    corners = cells.corners()
    steps = min(steps, count)
    ends = np.linspace(0, count, steps + 1).round().astype(int)

    def shown(order: np.ndarray, first: np.ndarray, then: np.ndarray) -> Iterator[Image.Image]:
        """Pictures in which more and more cells of `first` are those of `then`; all of it at the end."""
        mixed = first.copy()
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            for left, top, right, bottom in corners[order[start:stop]]:
                mixed[top:bottom, left:right] = then[top:bottom, left:right]
            yield Image.fromarray(then if stop == count else mixed)

    def curves(order: np.ndarray) -> Curves:
        values = score(itertools.chain(shown(order, pixels, gone), shown(order, blurred, pixels)))
        return Curves(tuple(values[: steps + 1]), tuple(values[steps + 1 :]))

    found = {name: curves(order) for name, order in orders.items()}
    first = next(iter(found.values()))
    return Faithfulness(
        first.deletion[0],
        first.insertion[0],
        first.deletion[-1],
        found,
        tuple(curves(order) for order in randoms),
    )


def word_score(reader: Reader, token_ids: Sequence[int], places: Sequence[int]) -> Score:
    """The probability of a word of an answer, after what stands before it: geometric mean over its tokens.

    Args:
        token_ids: of the answer.
        places: of the tokens of the word, which follow each other.
    """
    ids = list(token_ids[: places[-1] + 1])
    own = torch.tensor(ids[places[0] :])
    seen: dict[bytes, float] = {}

    def of_batch(pictures: Sequence[Image.Image]) -> list[float]:
        prompts = [reader.prompt] * len(pictures)
        inputs = prepare([[each] for each in pictures], prompts, reader.processor)
        inputs = inputs.to(input_device(reader.model), dtype=reader.model.dtype)
        with torch.no_grad():
            whole = with_answer(inputs, ids)
            logits = reader.model(**whole, logits_to_keep=len(own) + 1, use_cache=False).logits
        log_p = logits[:, -len(own) - 1 : -1].float().log_softmax(dim=-1)
        chosen = log_p.gather(2, own.to(log_p.device).expand(len(pictures), -1)[..., None])
        return [float(each) for each in chosen[..., 0].mean(dim=1).exp()]

    def score(pictures: Iterable[Image.Image]) -> list[float]:
        size = max(1, min(_BATCH, _TOKENS // (reader.length + len(ids))))
        keys: list[bytes] = []
        waiting: dict[bytes, Image.Image] = {}
        for each in pictures:
            keys.append(hashlib.sha256(each.tobytes()).digest())
            if keys[-1] not in seen:
                waiting[keys[-1]] = each
            if len(waiting) == size:
                seen.update(zip(waiting, of_batch([*waiting.values()]), strict=True))
                waiting = {}
        if waiting:
            seen.update(zip(waiting, of_batch([*waiting.values()]), strict=True))
        return [seen[key] for key in keys]

    return score
