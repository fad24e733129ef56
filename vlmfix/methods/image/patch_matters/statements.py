"""Statements of several captions: which agree, which contradict each other, and which are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


@dataclass(frozen=True)
class Statement:
    """A sentence of a caption.

    Args:
        text: itself.
        sample: of which caption, counted from 0.
    """

    text: str
    sample: int


@dataclass(frozen=True)
class Groups:
    """Statements of the captions of one region, each said once.

    Args:
        similar: those that at least two captions make.
        contradictory: groups of those that cannot all be true.
        unique: the others.
    """

    similar: tuple[Statement, ...] = ()
    contradictory: tuple[tuple[Statement, ...], ...] = ()
    unique: tuple[Statement, ...] = ()

    @property
    def doubtful(self) -> tuple[Statement, ...]:
        """Those that need a score."""
        return (*(each for group in self.contradictory for each in group), *self.unique)


def statements(captions: Sequence[str]) -> list[Statement]:
    """The sentences of captions, in order."""
    return [
        Statement(sentence.strip(), number)
        for number, caption in enumerate(captions)
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", caption)
        if _WORD.search(sentence)
    ]


def read_groups(reply: str, count: int) -> tuple[list[list[int]], list[list[int]]]:
    """The groups in the reply of a language model: lines `SAME: 1, 4` and `CONFLICT: 2, 5`.

    Args:
        reply: any text; what is no such line is passed over.
        count: of the sentences, which are numbered from 1.

    Returns:
        Groups of the same and of conflicting sentences, by indices from 0; of two or more each.
    """
    found: dict[str, list[list[int]]] = {"same": [], "conflict": []}
    for kind, rest in re.findall(r"^\W*(same|conflict)\w*\W*:(.*)$", reply, re.IGNORECASE | re.MULTILINE):
        numbers = dict.fromkeys(int(number) - 1 for number in re.findall(r"\d{1,6}", rest))
        members = [number for number in numbers if 0 <= number < count]
        if len(members) > 1:
            found[kind.lower()].append(members)
    return found["same"], found["conflict"]


def grouped(
    said: Sequence[Statement], same: Sequence[Sequence[int]] = (), conflicts: Sequence[Sequence[int]] = ()
) -> Groups:
    """Sorted statements; what is said in the same words is the same, whatever else is known.

    Args:
        said: statements.
        same: groups of those that say the same, by index.
        conflicts: groups of those that cannot all be true, by index; of one that is in two, the first counts.
    """
    first: dict[str, int] = {}
    owner = [first.setdefault(_plain(each.text), index) for index, each in enumerate(said)]
    for group in same:
        joined = {owner[index] for index in group}
        owner = [min(joined) if each in joined else each for each in owner]
    taken: set[int] = set()
    contradictory = []
    for conflict in conflicts:
        members = [each for each in dict.fromkeys(owner[index] for index in conflict) if each not in taken]
        if len(members) > 1:
            taken |= set(members)
            contradictory.append(tuple(said[each] for each in members))
    similar: list[Statement] = []
    unique: list[Statement] = []
    for each in dict.fromkeys(owner):
        if each not in taken:
            samples = {said[index].sample for index, own in enumerate(owner) if own == each}
            (similar if len(samples) > 1 else unique).append(said[each])
    return Groups(tuple(similar), tuple(contradictory), tuple(unique))


def reliable(groups: Groups, scores: Mapping[str, float], keep_score: float) -> list[str]:
    """What is kept: all that is said twice, and of the rest what a score speaks for.

    Args:
        groups: statements of a region.
        scores: of the doubtful ones, by text.
        keep_score: above which the best of contradictory ones, and unique ones, are kept.
    """
    kept = [each.text for each in groups.similar]
    for group in groups.contradictory:
        best = max(group, key=lambda each: scores[each.text])
        kept += [best.text] if scores[best.text] > keep_score else []
    return kept + [each.text for each in groups.unique if scores[each.text] > keep_score]


def same_by_embedding(said: Sequence[Statement], embeddings: Tensor, least: float) -> list[list[int]]:
    """Pairs of statements of different captions that lie close together.

    Args:
        said: statements.
        embeddings: of each, `(statements, size)`.
        least: cosine similarity from which two say the same.
    """
    if not len(said):
        return []
    directions = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    close = directions @ directions.T >= least
    return [
        [first, second]
        for first, second in close.triu(1).nonzero().tolist()
        if said[first].sample != said[second].sample
    ]


def match_score(match: float, cosine: float) -> float:
    """The score of the paper from a model such as BLIP: the probability that an image and a text match, and
    the cosine similarity of their embeddings, averaged."""
    return 0.5 * (match + cosine)


def _plain(text: str) -> str:
    """Words alone, in small letters."""
    return " ".join(_WORD.findall(text.lower()))
