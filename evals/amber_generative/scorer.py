"""Rules of AMBER for the nouns of a description (arXiv 2311.07397)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

Variant = Literal["corrected", "official"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""`official` goes on to compare a noun that is in `hallu`, and may find it there after all; `corrected`
counts it as hallucinated."""

SIMILARITY = 0.8
"""Two words are alike above it."""

_START = 0.001
"""Of every denominator of the official script."""

Similarity = Callable[[str, str], float]
"""Cosine of the vectors of two words."""


@dataclass(frozen=True)
class Words:
    """The word lists of the benchmark.

    Args:
        associates: the words that count as another one, by that word; the vocabulary is both.
        safe: words that are never wrong.
    """

    associates: Mapping[str, Sequence[str]]
    safe: Collection[str]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The nouns that count."""
        return frozenset(self.associates).union(*self.associates.values())

    def targets(self, listed: Sequence[str]) -> list[tuple[str, int]]:
        """All words that stand for the listed ones, each with the index of what it stands for.

        Associates come before the listed words themselves: a word that is both stands for the former.
        """
        of_associates = [(word, i) for i, each in enumerate(listed) for word in self.associates.get(each, ())]
        return of_associates + [(each, i) for i, each in enumerate(listed)]


@dataclass(frozen=True)
class Reading:
    """What a description says.

    Args:
        hallucinated: nouns that are not there, with repeats.
        covered: words of `truth` that it names.
        expected: words of `hallu`, which people would expect there, that it names.
    """

    hallucinated: list[str]
    covered: list[str]
    expected: list[str]


def read_nouns(
    nouns: Sequence[str],
    truth: Sequence[str],
    hallu: Sequence[str],
    words: Words,
    similarity: Similarity,
    variant: Variant,
) -> Reading:
    """Decide on each noun of a description.

    Args:
        nouns: those of the vocabulary, in order, with repeats.
        truth: what is in the picture.
        hallu: what is not, and might be expected.
        words: of the benchmark.
        similarity: of two words.
        variant: of the rules.
    """
    there, absent = words.targets(truth), words.targets(hallu)
    covered: set[int] = set()
    expected: set[int] = set()
    hallucinated = []
    for noun in nouns:
        if noun in words.safe:
            continue
        exact = _equal(noun, there)
        if exact is not None:
            covered.add(exact)
            continue
        wrong = _equal(noun, absent)
        if wrong is not None:
            expected.add(wrong)
            if variant == "corrected":
                hallucinated.append(noun)
                continue
        alike = _alike(noun, absent, similarity)
        if alike is not None:
            expected.add(alike)
        saved = _alike(noun, there, similarity)
        if saved is not None:
            covered.add(saved)
        else:
            hallucinated.append(noun)
    return Reading(hallucinated, [truth[i] for i in sorted(covered)], [hallu[i] for i in sorted(expected)])


def _equal(noun: str, targets: Sequence[tuple[str, int]]) -> int | None:
    """What the first target that is the noun stands for."""
    return next((index for word, index in targets if word == noun), None)


def _alike(noun: str, targets: Sequence[tuple[str, int]], similarity: Similarity) -> int | None:
    """What the first target that is similar to the noun stands for."""
    return next((index for word, index in targets if similarity(noun, word) > SIMILARITY), None)


@dataclass(frozen=True)
class Counts:
    """Sums over descriptions, as AMBER's figures are made of them."""

    nouns: int
    hallucinated: int
    truth: int
    covered: int
    hallu: int
    expected: int
    descriptions: int
    clean: int


@dataclass(frozen=True)
class OfficialScore:
    """The figures of the official script, in percent with one decimal."""

    chair: float
    cover: float
    hal: float
    cog: float


def official_score(counts: Counts) -> OfficialScore:
    """The figures of the official script, all of whose denominators start at 0.001."""
    return OfficialScore(
        chair=round(100 * counts.hallucinated / (_START + counts.nouns), 1),
        cover=round(100 * counts.covered / (_START + counts.truth), 1),
        hal=round(100 - 100 * counts.clean / (_START + counts.descriptions), 1),
        cog=round(100 * counts.expected / (_START + counts.hallu), 1),
    )
