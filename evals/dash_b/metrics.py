"""Figures of DASH-B: how often a model denies what is not there, and confirms what is (arXiv 2503.23573)."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import Estimate, percentile_estimate, resampled_ratios
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.groups import of_each_group
from vlmfix.evaluation.tasks.ratios import harmonic_mean
from vlmfix.evaluation.tasks.yes_no import yes_no_metrics
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict


def dash_metrics(
    samples: Sequence[Sample], texts: Sequence[str | None], verdicts: Sequence[Verdict | None]
) -> list[Metric]:
    """Accuracy, TNR, TPR and more over all pictures; TNR over objects; the first three for each source.

    Args:
        samples: what was asked.
        texts: raw answers; None: the sample failed.
        verdicts: what a parser made of each answer.
    """
    found = {each.name: each for each in yes_no_metrics(samples, texts, verdicts)}
    yes, false_yes = found.pop("recall"), found.pop("false-yes rate")
    says_no = np.array([verdict == "no" for verdict in verdicts], dtype=float)
    tnr = Metric("TNR", says_no * false_yes.wholes, false_yes.wholes, better="higher")
    main = [found.pop("accuracy"), tnr, dataclasses.replace(yes, name="TPR")]
    sources = [sample.meta["stratum"] for sample in samples]
    by_source = [each for metric in main for each in of_each_group(metric, sources)]
    return [*main, *_over_objects(tnr, samples), false_yes, *found.values(), *by_source]


def _over_objects(tnr: Metric, samples: Sequence[Sample]) -> list[Metric]:
    """The unweighted mean of the TNR of all objects, and the share of objects whose TNR is 0."""
    [right], [asked] = tnr.parts, tnr.wholes
    occurred: Counter[str] = Counter()
    objects: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        if asked[index]:
            objects[sample.meta["object"], occurred[sample.id]].append(index)  # the repeats one by one
        occurred[sample.id] += 1
    weights, first, never = np.zeros((3, len(samples)))
    for members in objects.values():
        weights[members] = 1 / len(members)  # every object counts once
        first[members[0]] = 1
        never[members[0]] = not right[members].any()
    return [
        Metric("macro TNR", (right * weights)[None], weights[None], better="higher"),
        Metric("objects with TNR 0", never[None], first[None], better="lower"),
    ]


def harmonic_estimate(tnr: Metric, tpr: Metric, clusters: np.ndarray) -> Estimate:
    """The harmonic mean of TNR and TPR with the percentile interval of resampled clusters.

    It is no ratio of sums, so that no formula of those serves.

    Args:
        tnr: over all samples.
        tpr: over the same samples.
        clusters: label of each sample, `(samples,)`.

    Returns:
        The estimate; "undefined" with the value 0.0, where both are 0 or there is no sample for one of them.
    """
    value = harmonic_mean(tnr.value, tpr.value)
    asked = (tnr.wholes + tpr.wholes)[0] > 0
    samples, count = int(asked.sum()), len(np.unique(clusters[asked]))
    if not (tnr.is_defined and tpr.is_defined) or tnr.value + tpr.value == 0:
        return Estimate(0.0, None, None, None, samples, count, "undefined")
    first, second = resampled_ratios([tnr, tpr], clusters).T
    both = first + second
    draws = np.divide(2 * first * second, both, out=np.full_like(both, np.nan), where=both > 0)
    return percentile_estimate(value, draws, samples=samples, clusters=count)
