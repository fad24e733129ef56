"""Made-up outcomes: what the harness would hand over for yes/no questions and for captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmfix.evaluation.analysis.margins import calibration, margin_metrics
from vlmfix.evaluation.analysis.results import AnyMetric, Metric, Outcome, SampleResult
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Task, TaskMetrics

SPLITS = ("random", "popular", "adversarial")
OBJECTS = ("knife", "fork", "dining table", "car", "chair", "dog")

PARSERS = ("official", "strict")


def yes_no(
    method: str = "greedy",
    *,
    images: int = 12,
    yes_bias: float = 0.7,
    seed: int = 0,
    repeats: int = 1,
    splits: Sequence[str] = SPLITS,
    pictures: Sequence[Path | None] = (None,),
    failed: Sequence[int] = (),
    **changes: Any,
) -> Outcome:
    """A method on yes/no questions, six about each image in every split.

    Args:
        yes_bias: how often it says yes to what is not there.
        pictures: of the images, in turns.
        failed: indices of failed samples.
        changes: other fields of the outcome.
    """
    samples, target, said, repeat_of, split_of, kind_of = [], [], [], [], [], []
    for split in splits:
        for image in range(images):
            for question in range(6):
                for repeat in range(repeats):
                    index = len(samples)
                    draw = np.random.default_rng(
                        [seed, SPLITS.index(split), image, question, repeat]
                    ).random()
                    positive = question % 2 == 0
                    yes = draw < (0.85 if positive else yes_bias)
                    lost = index in failed
                    right = yes == positive
                    samples.append(
                        SampleResult(
                            id=f"pope/{split}/{image:04}/{question}",
                            cluster=f"{image:012}.jpg",
                            image=pictures[image % len(pictures)],
                            prompt=f"Is there a {OBJECTS[question]} in the image?\nAnswer in a word.",
                            target="yes" if positive else "no",
                            answer=None if lost else ("Yes." if yes else "No."),
                            verdict="" if lost else ("yes" if yes else "no"),
                            score=None if lost else float(right),
                        )
                    )
                    target.append(positive)
                    said.append(yes)
                    repeat_of.append(repeat)
                    split_of.append(split)
                    kind_of.append(OBJECTS[question])
    answered = np.array([sample.score is not None for sample in samples])
    target_yes, said_yes = np.array(target), np.array(said)
    groups = {split: answered & (np.array(split_of) == split) for split in splits}
    metrics = _yes_no_metrics(target_yes, said_yes, groups)
    strict = said_yes & (np.arange(len(samples)) % 20 != 0)  # a parser that misses some
    count = int(answered.sum())
    base = {
        "task": "pope",
        "protocol": "pope.llava/synthetic",
        "method": method,
        "parameters": {} if method == "greedy" else {"moved_fraction": 0.4, "layers": (1, 2)},
        "samples": samples,
        "repeats": np.array(repeat_of, dtype=int),
        "metrics": metrics,
        "tradeoff": ("false-yes rate", "recall"),
        "parsers": {"official": metrics, "strict": _yes_no_metrics(target_yes, strict, groups)},
        "objects": {
            name: (
                sum(sample.score == 0 for sample, kind in zip(samples, kind_of, strict=True) if kind == name),
                kind_of.count(name),
            )
            for name in OBJECTS
        },
        "yes_no": True,
        "counts": {
            "samples": len(samples),
            "answered": count,
            "failed": len(samples) - count,
            "truncated": 0,
        },
        "failures": {"OSError": len(samples) - count} if count < len(samples) else {},
        "costs": {
            "seconds per sample": 0.11 if method == "greedy" else 0.13,
            "forwards per token": 1.0,
            "new tokens per sample": 2.0,
            "peak memory": 15.2 * 2**30,
        },
        "activity": {}
        if method == "greedy"
        else {method: {"samples": count, "site share": 0.25, "kl_max": None}},
        "details": {"model": "tiny-llava", "data": {"rows": len(samples)}},
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
    samples, wrong, named, there, found = [], [], [], [], []
    for image in range(images):
        random = np.random.default_rng([seed, image])
        there.append(int(random.integers(2, 6)))
        found.append(int(random.binomial(there[-1], 0.9 - 0.1 * care)))
        wrong.append(int(random.binomial(3, 0.4 * (1 - care))))
        named.append(found[-1] + wrong[-1])
        false = ", ".join(OBJECTS[: wrong[-1]])
        samples.append(
            SampleResult(
                id=f"chair/{image:012}",
                cluster=f"{image:012}.jpg",
                image=pictures[image % len(pictures)],
                prompt="Please describe this image in detail.",
                target=", ".join(OBJECTS[: there[-1]]),
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
        _ratio("words", np.array([len(sample.answer.split()) for sample in samples]), ones, percent=False),
        _ratio("truncated", 0 * ones, ones),
    ]
    base = {
        "task": "chair",
        "protocol": "chair.512",
        "method": method,
        "parameters": {} if method == "greedy" else {"alpha": 1.0},
        "samples": samples,
        "repeats": np.zeros(images, dtype=int),
        "metrics": metrics,
        "tradeoff": ("CHAIRi", "recall"),
        "objects": {name: (int(sum(w > i for w in wrong)), images) for i, name in enumerate(OBJECTS[:3])},
        "counts": {"samples": images, "answered": images, "failed": 0, "truncated": 0},
        "costs": {"seconds per sample": 2.1, "forwards per token": 1.0, "peak memory": None},
    }
    return Outcome(**(base | changes))


def two_tasks(pictures: Sequence[Path | None] = (None,)) -> list[Outcome]:
    """A run of three methods on questions, two of them with margins, and of two methods on captions."""
    details = {
        "key": {
            "library": "0.1.0",
            "model": {
                "id": "llava-1.5-7b",
                "revision": "sha256:" + 64 * "a",
                "dtype": "bfloat16",
                "attention": {"text": "sdpa", "vision": None},
            },
            "protocol": {"parser": "strict", "temperature": 0.0, "num_beams": 1, "max_new_tokens": 16},
        },
        "info": {
            "started_at": "2025-11-21T09:12:00Z",
            "first_prompt": "USER:\nIs there a dog?",
            "data": {"questions": {"file": "/data/questions.json", "rows": 3000, "sha256": 64 * "b"}},
        },
        "environments": [{"device": "NVIDIA H100", "torch": "2.9.0", "transformers": "5.23.0"}],
    }
    subset = "40 of 500 images, 720 samples"
    return [
        with_margins(yes_no(images=40, pictures=pictures, details=details, subset=subset)),
        yes_no(
            "var(moved_fraction=0.6)", images=40, yes_bias=0.5, failed=(3,), details=details, subset=subset
        ),
        with_margins(
            yes_no("vhr", images=40, yes_bias=0.68, inactive=True, details=details, subset=subset), seed=1
        ),
        captions(images=40, pictures=pictures, details=details),
        captions("vcd", images=40, care=0.8, pictures=pictures, details=details),
    ]


def with_margins(outcome: Outcome, seed: int = 0) -> Outcome:
    """The same answers to questions with margins at the first token, and the figures made of them."""
    random = np.random.default_rng(seed)
    is_yes = np.array([sample.target == "yes" for sample in outcome.samples])
    margins = random.normal(1.5 * (2 * is_yes - 1), 1.5)
    splits = [sample.id.split("/")[1] for sample in outcome.samples]
    return dataclasses.replace(
        outcome,
        metrics=[*outcome.metrics, *margin_metrics(margins, is_yes, outcome.clusters, splits)],
        calibration=calibration(margins, is_yes),
    )


def shuffled(outcome: Outcome) -> Outcome:
    """The same with its samples in another order."""
    order = np.random.default_rng(0).permutation(len(outcome.samples))

    def taken(metrics: Sequence[AnyMetric]) -> list[AnyMetric]:
        return [each.in_order(order.tolist()) for each in metrics]

    return dataclasses.replace(
        outcome,
        samples=[outcome.samples[index] for index in order],
        repeats=outcome.repeats[order],
        metrics=taken(outcome.metrics),
        parsers={name: taken(metrics) for name, metrics in outcome.parsers.items()},
    )


def _yes_no_metrics(target: np.ndarray, said: np.ndarray, groups: dict[str, np.ndarray]) -> list[Metric]:
    right, both = target == said, target & said
    terms: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]] = {
        "accuracy": (right, np.ones(len(target)), {"better": "higher"}),
        "F1": (2 * both, target.astype(int) + said, {"better": "higher"}),
        "precision": (both, said, {"better": "higher"}),
        "recall": (both, target, {"better": "higher"}),
        "false-yes rate": (said & ~target, ~target, {"better": "lower"}),
        "yes ratio": (said, np.ones(len(target)), {}),
        "words": (np.ones(len(target)), np.ones(len(target)), {"percent": False}),
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


def metrics_of(
    task: Task, samples: Sequence[Sample], texts: Sequence[str | None], truncated: Sequence[bool]
) -> TaskMetrics:
    """The figures of answers that were judged just now."""
    scores = [
        None if text is None else task.judge(sample, text, truncated=is_truncated)
        for sample, text, is_truncated in zip(samples, texts, truncated, strict=True)
    ]
    return task.metrics(samples, texts, truncated, scores)
