"""How many images a comparison needs, from a pilot run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri

from vlmfix.evaluation.analysis.comparison import Row
from vlmfix.evaluation.analysis.statistics import TAILS

POWER = 0.8
POINTS = (0.01, 0.02, 0.05)
"""Differences that a comparison may have to find, as shares."""


@dataclass(frozen=True)
class Plan:
    """What a pilot says of the difference of one method to the first one.

    Args:
        metric: whose difference.
        images: of the pilot.
        error: standard error of the difference there.
        discordant: share of samples that only one of the two has right; None for other figures.
        needed: images with which a true difference of each of `POINTS` is found with a power of 0.8, at 5 %
            two-sided and without a correction for several methods.
        least: the smallest difference that as many images as the pilot's find with that power.
    """

    metric: str
    images: int
    error: float
    discordant: float | None
    needed: tuple[int, ...]
    least: float


def plan(row: Row, metric: str, group: str = "") -> Plan | None:
    """The plan for a method of a comparison; None without a paired difference, or where it has no error.

    Args:
        row: of the method; its differences are to the first method.
        metric: name of the headline metric.
        group: of the metric.
    """
    figure = row.figure(metric, group)
    if figure is None or figure.difference is None or not figure.difference.error:
        return None
    difference = figure.difference
    error = float(difference.error or 0)
    test = row.mcnemar.get("")
    size = (test.better + test.worse) / difference.samples if test and difference.samples else None
    return Plan(
        metric=metric,
        images=difference.clusters,
        error=error,
        discordant=size,
        needed=tuple(images_needed(error, difference.clusters, points) for points in POINTS),
        least=_factor() * error,
    )


def images_needed(error: float, images: int, difference: float) -> int:
    """With how many images a true difference is found with a power of 0.8, at 5 % two-sided.

    Args:
        error: standard error of the paired difference over `images` images of a pilot.
        images: of the pilot.
        difference: that is to be found.
    """
    return math.ceil(images * (_factor() * error / difference) ** 2)


def _factor() -> float:
    """How many standard errors a difference must be to be found."""
    return float(ndtri(TAILS[1]) + ndtri(POWER))
