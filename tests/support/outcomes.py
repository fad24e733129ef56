"""Made-up outcomes: what the harness would hand over for yes/no questions and for captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmfix.evaluation.analysis.results import ItemResult, Metric, Outcome

SPLITS = ("random", "popular", "adversarial")
OBJECTS = ("knife", "fork", "dining table", "car", "chair", "dog")
PARSERS = ("official", "strict")


def yes_no(
    method: str = "greedy",
    *,
    images: int = 12,
    yes_bias: float = 0.7,
    seed: int = 0,
    samples: int = 1,
    splits: Sequence[str] = SPLITS,
    pictures: Sequence[Path | None] = (None,),
    failed: Sequence[int] = (),
    **changes: Any,
) -> Outcome:
    """A method on yes/no questions, six about each image in every split.

    Args:
        yes_bias: how often it says yes to what is not there.
        pictures: of the images, in turns.
        failed: indices of failed items.
        changes: other fields of the outcome.
    """
    items, gold, said, sample_of, split_of, kind_of = [], [], [], [], [], []
    for split in splits:
        for image in range(images):
            for question in range(6):
                for sample in range(samples):
                    index = len(items)
                    draw = np.random.default_rng(
                        [seed, SPLITS.index(split), image, question, sample]
                    ).random()
                    positive = question % 2 == 0
                    yes = draw < (0.85 if positive else yes_bias)
                    lost = index in failed
                    right = yes == positive
                    items.append(
                        ItemResult(
                            id=f"pope/{split}/{image:04}/{question}",
                            cluster=f"{image:012}.jpg",
                            image=pictures[image % len(pictures)],
                            prompt=f"Is there a {OBJECTS[question]} in the image?\nAnswer in a word.",
                            gold="yes" if positive else "no",
                            answer=None if lost else ("Yes." if yes else "No."),
                            verdict="" if lost else ("yes" if yes else "no"),
                            score=None if lost else float(right),
                        )
                    )
                    gold.append(positive)
                    said.append(yes)
                    sample_of.append(sample)
                    split_of.append(split)
                    kind_of.append(OBJECTS[question])
    answered = np.array([item.score is not None for item in items])
    gold_yes, said_yes = np.array(gold), np.array(said)
    groups = {split: answered & (np.array(split_of) == split) for split in splits}
    metrics = _yes_no_metrics(gold_yes, said_yes, groups)
    strict = said_yes & (np.arange(len(items)) % 20 != 0)  # a parser that misses some
    count = int(answered.sum())
    base = {
        "task": "pope",
        "protocol": "pope.llava/synthetic",
        "method": method,
        "parameters": {} if method == "greedy" else {"moved_fraction": 0.4, "layers": (1, 2)},
        "items": items,
        "samples": np.array(sample_of, dtype=int),
        "metrics": metrics,
        "tradeoff": ("false-yes rate", "recall"),
        "parsers": {"official": metrics, "strict": _yes_no_metrics(gold_yes, strict, groups)},
        "objects": {
            name: (
                sum(item.score == 0 for item, kind in zip(items, kind_of, strict=True) if kind == name),
                kind_of.count(name),
            )
            for name in OBJECTS
        },
        "yes_no": True,
        "counts": {"items": len(items), "answered": count, "failed": len(items) - count, "truncated": 0},
        "failures": {"OSError": len(items) - count} if count < len(items) else {},
        "costs": {
            "seconds per item": 0.11 if method == "greedy" else 0.13,
            "forwards per token": 1.0,
            "new tokens per item": 2.0,
            "peak memory": 15.2 * 2**30,
        },
        "activity": {} if method == "greedy" else {"rows": count, "site_share": 0.25, "size": None},
        "details": {"model": "tiny-llava", "data": {"rows": len(items)}},
    }
    return Outcome(**(base | changes))


def captions(
    method: str = "greedy",
    *,
    images: int = 12,
    care: float = 0.5,
    seed: int = 0,
    pictures: Sequence[Path | None] = (None,),
    **changes: Any,
) -> Outcome:
    """A method on captions; the more careful, the fewer objects it names, false ones above all."""
    items, wrong, named, there, found = [], [], [], [], []
    for image in range(images):
        random = np.random.default_rng([seed, image])
        there.append(int(random.integers(2, 6)))
        found.append(int(random.binomial(there[-1], 0.9 - 0.1 * care)))
        wrong.append(int(random.binomial(3, 0.4 * (1 - care))))
        named.append(found[-1] + wrong[-1])
        false = ", ".join(OBJECTS[: wrong[-1]])
        items.append(
            ItemResult(
                id=f"chair/{image:012}",
                cluster=f"{image:012}.jpg",
                image=pictures[image % len(pictures)],
                prompt="Please describe this image in detail.",
                gold=", ".join(OBJECTS[: there[-1]]),
                answer=f"The image shows a room with {named[-1]} things in it. " * (3 + wrong[-1]),
                verdict=f"not there: {false}" if false else "all there",
                score=1 - wrong[-1] / max(named[-1], 1),
            )
        )
    ones = np.ones(images)
    hallucinated, mentions, recalled, present = (
        np.array(each, dtype=float) for each in (wrong, named, found, there)
    )
    metrics = [
        _ratio("CHAIRs", hallucinated > 0, ones, better="lower"),
        _ratio("CHAIRi", hallucinated, mentions, better="lower"),
        _ratio("recall", recalled, present, better="higher"),
        _ratio("precision", recalled, mentions, better="higher"),
        _ratio("F1", 2 * recalled, present + mentions, better="higher"),
        _ratio("words", np.array([len(item.answer.split()) for item in items]), ones, percent=False),
        _ratio("truncated", 0 * ones, ones),
    ]
    base = {
        "task": "chair",
        "protocol": "chair.512",
        "method": method,
        "parameters": {} if method == "greedy" else {"alpha": 1.0},
        "items": items,
        "samples": np.zeros(images, dtype=int),
        "metrics": metrics,
        "tradeoff": ("CHAIRi", "recall"),
        "objects": {name: (int(sum(w > i for w in wrong)), images) for i, name in enumerate(OBJECTS[:3])},
        "counts": {"items": images, "answered": images, "failed": 0, "truncated": 0},
        "costs": {"seconds per item": 2.1, "forwards per token": 1.0, "peak memory": None},
    }
    return Outcome(**(base | changes))


def shuffled(outcome: Outcome) -> Outcome:
    """The same with its items in another order."""
    order = np.random.default_rng(0).permutation(len(outcome.items))

    def taken(metrics: list[Metric]) -> list[Metric]:
        return [
            dataclasses.replace(each, parts=each.parts[:, order], wholes=each.wholes[:, order])
            for each in metrics
        ]

    return dataclasses.replace(
        outcome,
        items=[outcome.items[index] for index in order],
        samples=outcome.samples[order],
        metrics=taken(outcome.metrics),
        parsers={name: taken(metrics) for name, metrics in outcome.parsers.items()},
    )


def _yes_no_metrics(gold: np.ndarray, said: np.ndarray, groups: dict[str, np.ndarray]) -> list[Metric]:
    right, both = gold == said, gold & said
    terms: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]] = {
        "accuracy": (right, np.ones(len(gold)), {"better": "higher"}),
        "F1": (2 * both, gold.astype(int) + said, {"better": "higher"}),
        "precision": (both, said, {"better": "higher"}),
        "recall": (both, gold, {"better": "higher"}),
        "false-yes rate": (said & ~gold, ~gold, {"better": "lower"}),
        "yes ratio": (said, np.ones(len(gold)), {}),
        "words": (np.ones(len(gold)), np.ones(len(gold)), {"percent": False}),
    }
    metrics = []
    for name, (parts, wholes, more) in terms.items():
        masked = [(parts * mask, wholes * mask) for mask in groups.values()]
        metrics.append(
            Metric(
                name,
                np.array([part for part, _ in masked], dtype=float),
                np.array([whole for _, whole in masked], dtype=float),
                **more,
            )
        )
        if len(groups) > 1:
            metrics += [
                _ratio(name, part, whole, group=group, **more)
                for group, (part, whole) in zip(groups, masked, strict=True)
            ]
    return metrics


def _ratio(name: str, parts: np.ndarray, wholes: np.ndarray, **more: Any) -> Metric:
    return Metric(name, np.asarray(parts, dtype=float)[None], np.asarray(wholes, dtype=float)[None], **more)
