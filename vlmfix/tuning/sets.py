"""Three sets of images that share none: one to search on, one to choose on, one to report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from vlmfix.evaluation.sample import Sample

# Shares of the images; where an image belongs does not depend on which others there are.
_SEARCH, _CHOICE = 0.25, 0.5
_LEAST = 10


@dataclass(frozen=True)
class Sizes:
    """The number of images, at most, of each set and data set."""

    search: int = 72
    choice: int = 150
    test: int = 200


QUESTIONS = Sizes(36, 60, 100)
"""For yes/no questions, of which an image has many."""


@dataclass(frozen=True)
class ThreeSets:
    """Samples by what they serve; all samples of an image are in one set, images by their hash."""

    search: list[Sample]
    choice: list[Sample]
    test: list[Sample]

    @classmethod
    def of(cls, samples: Sequence[Sample], sizes: Sizes, *, name: str) -> ThreeSets:
        """Divide the samples of a data set.

        Args:
            samples: all of them.
            sizes: the number of images of each set, at most.
            name: of the data set, for messages.

        Raises:
            ValueError: a set would have fewer than 10 images.
        """
        places = {sample.cluster: _place(sample.cluster) for sample in samples}
        images = sorted(places, key=lambda image: places[image])
        search = [image for image in images if places[image] < _SEARCH]
        choice = [image for image in images if _SEARCH <= places[image] < _CHOICE]
        test = [image for image in images if places[image] >= _CHOICE]
        sets = []
        for part, several, size in (
            ("search", search, sizes.search),
            ("choice", choice, sizes.choice),
            ("test", test, sizes.test),
        ):
            if min(len(several), size) < _LEAST:
                raise ValueError(
                    f"the {part} set of {name} has {min(len(several), size)} images of {len(images)}; it "
                    f"needs {_LEAST} at least, better 60: give more annotated pictures"
                )
            rank = {image: number for number, image in enumerate(several[:size])}
            taken = [sample for sample in samples if sample.cluster in rank]
            sets.append(sorted(taken, key=lambda sample: (rank[sample.cluster], sample.id)))
        return cls(*sets)


def first_images(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The samples of the first images of a set."""
    images = list(dict.fromkeys(sample.cluster for sample in samples))[:count]
    return [sample for sample in samples if sample.cluster in set(images)]


def _place(image: str) -> float:
    """Where an image lies between 0 and 1."""
    return int.from_bytes(hashlib.sha256(f"tune/{image}".encode()).digest()[:8], "big") / 2**64
