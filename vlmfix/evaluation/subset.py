"""A part of a benchmark for quick runs: whole images, the same ones whatever the order of the questions."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlmfix.evaluation.sample import Sample

_YES_SHARE = 0.05  # by which the share of yes may differ from that of the whole


@dataclass(frozen=True)
class Subset:
    """Some images of a benchmark, with all their questions.

    Args:
        samples: in their own order.
        images: how many are taken; of benchmarks whose unit is another, such as an object, how many of these.
        of: how many there are.
        unit: what that other unit is.
        note: what a reader has to know of the choice, in words; "" if nothing.
    """

    samples: list[Sample]
    images: int
    of: int
    unit: str = "image"
    note: str = ""

    @property
    def words(self) -> str:
        """Such as `83 of 500 images, 498 samples`; "" for all of them."""
        if self.images == self.of:
            return ""
        return f"{self.images:,} of {self.of:,} {self.unit}s, {len(self.samples):,} samples"


def subset(
    samples: Sequence[Sample],
    limit: int | float | None = None,
    *,
    images: int | None = None,
    seed: int = 0,
    unit: str = "image",
) -> Subset:
    """Draw whole images: the first in the order of the SHA-256 of seed and file name.

    A smaller subset is a part of a larger one. Where splits (or `meta["stratum"]`) have images of their own,
    each gives its share of them.

    Args:
        samples: of a benchmark, with different ids.
        limit: about how many samples, or as a float in (0, 1] which share of the images; None: all.
        images: how many images, in the place of `limit`.
        seed: of the order.
        unit: what the samples of a cluster share, in words.

    Raises:
        ValueError: a number out of its range, or both numbers.
    """
    units: dict[str, list[Sample]] = {}
    for sample in samples:
        units.setdefault(sample.cluster, []).append(sample)
    count = _count(len(units), len(samples), limit, images)
    strata: dict[str, list[str]] = {}
    for name in sorted(
        units, key=lambda name: hashlib.sha256(f"{seed}/{_name(name, units)}".encode()).digest()
    ):
        first = min(str(each.meta.get("stratum", each.meta.get("split", ""))) for each in units[name])
        strata.setdefault(first, []).append(name)
    quotas = _quotas({name: len(members) for name, members in strata.items()}, count)
    chosen = {name for stratum, members in strata.items() for name in members[: quotas[stratum]]}
    taken = [sample for sample in samples if sample.cluster in chosen]
    return Subset(taken, len(chosen), len(units), unit, _note(taken, samples))


def _count(units: int, samples: int, limit: int | float | None, images: int | None) -> int:
    """How many images to take."""
    if images is not None:
        if limit is not None:
            raise ValueError(f"limit is {limit!r} and limit_images {images!r}; give one of them")
        if isinstance(images, bool) or images < 1:
            raise ValueError(f"limit_images is {images!r}; it must be 1 or more")
        return min(images, units)
    if limit is None or not units:
        return units
    share = isinstance(limit, float)
    if isinstance(limit, bool) or not (0 < limit <= 1 if share else limit >= 1):
        raise ValueError(
            f"limit must be a count of at least 1 or a share in (0, 1] such as 0.1, got {limit!r}"
        )
    return min(units, max(1, math.ceil(limit * units) if share else round(limit * units / samples)))


def _name(unit: str, units: Mapping[str, Sequence[Sample]]) -> str:
    """The file name of the image, where all samples of the unit have one image; else the unit's own name."""
    files = {sample.image for sample in units[unit]}
    image = next(iter(files))
    return image.name if len(files) == 1 and image is not None else unit


def _quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """How many images each stratum gives: by largest remainder, and one at least; ties by name."""
    total = sum(sizes.values())
    exact = {name: count * size / total for name, size in sizes.items()}
    quotas = {name: max(1, math.floor(share)) for name, share in exact.items()}
    order = sorted(sizes, key=lambda name: (math.floor(exact[name]) - exact[name], name))
    for name in order:
        if sum(quotas.values()) < count and quotas[name] < sizes[name]:
            quotas[name] += 1
    return quotas


def _note(taken: Sequence[Sample], samples: Sequence[Sample]) -> str:
    own, whole = _yes_share(taken), _yes_share(samples)
    if own is None or whole is None or abs(own - whole) <= _YES_SHARE:
        return ""
    return (
        f"yes is right for {100 * own:.0f} % of these questions and for {100 * whole:.0f} % of all; take "
        "more images"
    )


def _yes_share(samples: Sequence[Sample]) -> float | None:
    """The share of questions whose answer is yes; None where some have another answer than yes and no."""
    words = Counter(sample.target if isinstance(sample.target, str) else "" for sample in samples)
    if not samples or words.keys() - {"yes", "no"}:
        return None
    return words["yes"] / len(samples)
