"""Figures of ROPE: how many of five objects get their right class (arXiv 2407.06192)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmfix.evaluation.analysis.intervals import paired_estimate
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.groups import mean_of_groups, of_each_group
from vlmfix.evaluation.tasks.ratios import harmonic_mean, ratio

from .slots import SLOTS, normalized, official_slots

Classes = Sequence[str | None]
"""What an answer gives to each slot that its sample asks about."""


def rope_metrics(samples: Sequence[Sample], said: Sequence[Classes | None]) -> list[Metric]:
    """The figures of our own rule: the unweighted mean over the splits, then each split.

    Args:
        samples: what was asked; `meta["slots"]` are the objects of each, from 0.
        said: one class for each slot of a sample; None: the sample failed.
    """
    right, asked, unread = np.zeros((3, SLOTS, len(samples)))
    for index, (sample, classes) in enumerate(zip(samples, said, strict=True)):
        if classes is not None:
            slots = sample.meta["slots"]
            asked[slots, index] = 1
            right[slots, index] = _right(sample, classes)
            unread[slots, index] = [given is None for given in classes]
    first, all_right, repeated = _of_pictures(samples, said)
    metrics = [
        Metric("slot accuracy", right.sum(0)[None], asked.sum(0)[None], better="higher"),
        Metric("all five right", all_right[None], first[None], better="higher"),
        *(Metric(f"slot {slot + 1}", right[[slot]], asked[[slot]], better="higher") for slot in range(SLOTS)),
        Metric("first class repeated", repeated[None], SLOTS * first[None]),
        Metric("unparsed slots", unread.sum(0)[None], asked.sum(0)[None]),
    ]
    return _by_split(metrics, samples)


def official_metrics(samples: Sequence[Sample], texts: Sequence[str | None]) -> list[Metric]:
    """The slot accuracy of sled-group/moh, whose denominator counts answers that it cannot split twice.

    Args:
        samples: of the settings `default` or `single`.
        texts: raw answers; None: the sample failed.
    """
    parts, wholes = np.zeros((2, len(samples)))
    for index, (sample, text) in enumerate(zip(samples, texts, strict=True)):
        if text is not None:
            classes, wholes[index] = official_classes(sample, text)
            parts[index] = sum(
                given == name.lower() for given, name in zip(classes, sample.target, strict=True)
            )
    return _by_split([Metric("slot accuracy", parts[None], wholes[None], better="higher")], samples)


def official_classes(sample: Sample, text: str) -> tuple[Classes, int]:
    """The classes of an answer by sled-group/moh, and by how many slots the denominator grows.

    Where one object is asked about, the raw answer is the class.
    """
    if len(sample.target) == 1:
        return [text], 1
    slots = official_slots(text)
    return slots.classes, slots.counted


@dataclass(frozen=True)
class Macro:
    """Means over classes; F1 is the harmonic mean of the two."""

    precision: float
    recall: float
    f1: float


def macro(said: Classes, right: Sequence[str], *, parsed_only: bool = False) -> Macro:
    """Precision and recall as means over the classes that occur among the right ones; a class that is never
    said has the precision 0.

    Args:
        said: a class for each slot.
        right: its class, spelt in the same way.
        parsed_only: leave slots without a class out, as sled-group/moh does.
    """
    pairs = [(given, name) for given, name in zip(said, right, strict=True) if given or not parsed_only]
    hits = Counter(name for given, name in pairs if given == name)
    given_times, times = Counter(given for given, _ in pairs), Counter(name for _, name in pairs)
    precision = ratio(sum(ratio(hits[name], given_times[name]) for name in times), len(times))
    recall = ratio(sum(hits[name] / times[name] for name in times), len(times))
    return Macro(precision, recall, harmonic_mean(precision, recall))


def gap(
    single: tuple[Sequence[Sample], Sequence[Classes | None]],
    together: tuple[Sequence[Sample], Sequence[Classes | None]],
) -> Estimate:
    """By how much the slots are more often right alone than together, paired by slot, with its interval.

    Args:
        single: samples and answers of the setting `single`.
        together: those of the setting `default`, about the same pictures.

    Raises:
        ValueError: no slot is answered in both.
    """
    alone, others = _slots(*single), _slots(*together)
    shared = sorted(alone.keys() & others.keys())
    if not shared:
        raise ValueError("no object is answered both alone and with the others; give answers of one split")
    wholes = np.ones((1, len(shared)))
    metrics = [
        Metric("slot accuracy", np.array([[found[key] for key in shared]], dtype=float), wholes)
        for found in (alone, others)
    ]
    pictures = np.unique([picture for picture, _ in shared], return_inverse=True)[1]
    return paired_estimate(metrics[0], metrics[1], pictures)


def _slots(samples: Sequence[Sample], said: Sequence[Classes | None]) -> dict[tuple[str, int], bool]:
    """Whether each slot is right, by picture and number."""
    return {
        (sample.cluster, slot): right
        for sample, classes in zip(samples, said, strict=True)
        if classes is not None
        for slot, right in zip(sample.meta["slots"], _right(sample, classes), strict=True)
    }


def _right(sample: Sample, classes: Classes) -> list[bool]:
    return [given == normalized(name) for given, name in zip(classes, sample.target, strict=True)]


def _of_pictures(
    samples: Sequence[Sample], said: Sequence[Classes | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Figures of whole pictures, at the first sample of each: whether it counts, whether all slots are right,
    and how many would be with the class of the first. A picture with a failed sample does not count."""
    occurred: Counter[str] = Counter()
    pictures: defaultdict[tuple[str, str, int], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        pictures[sample.meta["split"], sample.cluster, occurred[sample.id]].append(index)
        occurred[sample.id] += 1
    first, all_right, repeated = np.zeros((3, len(samples)))
    for members in pictures.values():
        given: dict[int, str | None] = {}
        names: dict[int, str] = {}
        for index in members:
            slots, classes = samples[index].meta["slots"], said[index]
            given |= {} if classes is None else dict(zip(slots, classes, strict=True))
            names |= dict(zip(slots, map(normalized, samples[index].target), strict=True))
        if len(given) == SLOTS:
            first[members[0]] = 1
            all_right[members[0]] = all(given[slot] == names[slot] for slot in names)
            repeated[members[0]] = sum(given[0] == name for name in names.values())
    return first, all_right, repeated


def _by_split(metrics: Sequence[Metric], samples: Sequence[Sample]) -> list[Metric]:
    splits = [sample.meta["split"] for sample in samples]
    means = [mean_of_groups(metric, splits) for metric in metrics]
    return means + [each for metric in metrics for each in of_each_group(metric, splits)]
