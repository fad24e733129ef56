"""Baselines that stand beside the methods of a comparison.

Greedy decoding belongs to every comparison, a biased prompt and an output shift to yes/no questions, cutting
to equal lengths to captions; each task names its own. Others (sampling, beams, the plausibility cut, sharper
logits, text contrast) are methods like any other, which a job names where they apply.
"""

from __future__ import annotations

import dataclasses

import vlmfix
from vlmfix.evaluation.runner.config import Job
from vlmfix.evaluation.runner.variants import Variant, check_labels
from vlmfix.evaluation.tasks.base import Task
from vlmfix.evaluation.tasks.protocols import Protocol

OUTPUT_SHIFT, TRUNCATE = "baseline.output_shift", "baseline.truncate"
MATCHED = (OUTPUT_SHIFT, TRUNCATE)
"""Baselines that are made to match a method, when its run has ended; see
`vlmfix.evaluation.runner.matched_baselines`."""


def rows(job: Job, task: Task) -> list[Variant]:
    """What a job runs on a task: baselines first, then the methods that are tested; without the baselines
    that are made to match a method.

    Stock decoding is a baseline, whoever named it, and so is a method of the level "baseline_of"; a recipe
    is tested whatever it holds.

    Raises:
        ValueError: a recipe is called as a baseline is.
    """
    variants = [_named(variant, task.protocol) for variant in job.variants]
    tested = [variant for variant in variants if not _is_baseline(variant)]
    if not job.baselines or not tested:
        return variants
    baselines = [variant for variant in variants if _is_baseline(variant)]
    if not any(is_greedy(variant, task.protocol) for variant in baselines):
        plain = task.protocol.temperature == 0 and task.protocol.num_beams == 1
        baselines.append(Variant.of("greedy" if plain else vlmfix.BaselineGreedy.name, {}))
    wanted = [Variant.of(name, {}) for name in task.baselines if name not in MATCHED]
    named = [variant.methods for variant in baselines]
    baselines += [variant for variant in wanted if variant.methods not in named]
    check_labels(baselines + tested)
    return [dataclasses.replace(variant, baseline_of="") for variant in baselines] + tested


def is_greedy(variant: Variant, protocol: Protocol) -> bool:
    """Whether a variant is greedy decoding of the stock model."""
    if variant.recipe is not None or variant.decoding:
        return False
    if not variant.methods:
        return protocol.temperature == 0 and protocol.num_beams == 1
    return variant.methods == (vlmfix.BaselineGreedy(),)


def _named(variant: Variant, protocol: Protocol) -> Variant:
    """Stock decoding is called greedy only where it is: the protocol may sample, or search with beams."""
    if variant.methods or variant.recipe is not None or is_greedy(variant, protocol):
        return variant
    return dataclasses.replace(variant, label="sampling" if protocol.temperature > 0 else "beam search")


def _is_baseline(variant: Variant) -> bool:
    return variant.recipe is None and all(method.info.is_baseline for method in variant.methods)
