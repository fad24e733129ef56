"""Baselines that are made to match a method: its share of yes, or the lengths of its captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import vlmfix
from vlmfix.evaluation.runner.baselines import OUTPUT_SHIFT, TRUNCATE
from vlmfix.evaluation.runner.plan import RunPlan
from vlmfix.evaluation.runner.run_store import Identity, Records
from vlmfix.evaluation.runner.truncation import limits
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.evaluation.tasks.lengths import drop_incomplete
from vlmfix.methods.baselines.output_shift import calibrate_shift

MODE = "per_image"
"""How captions are cut, see `vlmfix.evaluation.runner.truncation.limits`."""

# What a caption that may be cut takes over from its record: not what it cost to make it.
_KEPT = ("status", "text", "token_ids", "n_prompt_tokens", "n_new_tokens", "finish")

AnswerIds = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens that begin a yes, and those that begin a no."""
Decode = Callable[[Sequence[Sequence[int]]], list[str]]
"""From tokens to texts without special tokens."""


@dataclass(frozen=True)
class Answered:
    """A run that has ended, and what it answered."""

    plan: RunPlan
    records: Records


@dataclass(frozen=True)
class Matched:
    """A row that was made to match a run.

    Args:
        variant: how tables show it.
        calibrated_on: names of runs, by what was taken from them.
        settings: name and parameters of one that asks no model, in the form of `method_identity`.
        answers: the answers of such a row, by sample; in the form of records.
    """

    variant: Variant
    calibrated_on: Mapping[str, str]
    settings: Mapping[str, Any] | None = None
    answers: Mapping[Identity, Mapping[str, Any]] | None = None


def matching_baselines(
    greedy: Answered, method: Answered, answer_ids: AnswerIds | None, decode: Decode
) -> Iterator[Matched]:
    """The baselines of a method that its task wants matched.

    Args:
        greedy: greedy decoding of the stock model.
        method: the tested method, on the same samples.
        answer_ids: see `AnswerIds`; None where no answer is yes or no.
        decode: by the tokenizer of the model.

    Raises:
        ValueError: the greedy run has no margins.
    """
    for baseline in method.plan.task.baselines:
        if baseline == OUTPUT_SHIFT and answer_ids is not None:
            yield from _output_shift(greedy, method, answer_ids)
        elif baseline == TRUNCATE:
            yield from _truncations(greedy, method, decode)


def _output_shift(greedy: Answered, method: Answered, answer_ids: AnswerIds) -> Iterator[Matched]:
    """The offset with which greedy decoding says yes as often as the method."""
    both = [identity for identity in method.records.done if identity in greedy.records.done]
    if not both:
        return
    records = [greedy.records.done[identity] for identity in both]
    if any("reasoning" in record for record in records):
        return  # the answer comes after it, and no first step decides on it
    if not all("margin" in record for record in records):
        raise ValueError(
            f"{greedy.plan.path} was answered without margins between yes and no; choose another "
            "--output, or leave the baselines out (--no-baselines)"
        )
    share = fmean(method.records.done[identity]["parsed"] == "yes" for identity in both)
    delta = calibrate_shift([record["margin"] for record in records], share)
    baseline = vlmfix.BaselineOutputShift(delta=delta, yes_ids=answer_ids[0], no_ids=answer_ids[1])
    yield Matched(
        Variant(_label(OUTPUT_SHIFT, method), (baseline,), baseline_of=method.plan.variant.label),
        {"share of yes": method.plan.path.name, "margins": greedy.plan.path.name},
    )


def _truncations(greedy: Answered, method: Answered, decode: Decode) -> Iterator[Matched]:
    """Greedy captions cut to the method's lengths; where the method says more, its own cut to greedy ones."""
    label = method.plan.variant.label
    yield _truncated(Variant(_label(TRUNCATE, method), (), baseline_of=label), greedy, method, decode)
    if _mean_length(method) > _mean_length(greedy):
        yield _truncated(Variant(f"{label}, cut to greedy", ()), method, greedy, decode)


def _truncated(variant: Variant, captions: Answered, others: Answered, decode: Decode) -> Matched:
    """Captions of one run cut to the lengths of the captions of another."""
    both = [identity for identity in captions.records.done if identity in others.records.done]
    records = [captions.records.done[identity] for identity in both]
    left = limits(
        [_length(record) for record in records],
        [_length(others.records.done[identity]) for identity in both],
        mode=MODE,
    )
    tokens = [record["token_ids"][:limit] for record, limit in zip(records, left, strict=True)]
    texts = decode(tokens)
    answers: dict[Identity, dict[str, Any]] = {}
    for identity, record, ids, text in zip(both, records, tokens, texts, strict=True):
        answers[identity] = {name: record[name] for name in _KEPT} | {"method_info": {}}
        if len(ids) < _length(record):
            answers[identity] |= {
                "text": drop_incomplete(text),
                "token_ids": ids,
                "n_new_tokens": len(ids),
                "finish": "length",
            }
    return Matched(
        variant,
        {"captions": captions.plan.path.name, "lengths": others.plan.path.name},
        {"name": TRUNCATE, "parameters": {"mode": MODE}},
        answers,
    )


def _mean_length(run: Answered) -> float:
    return fmean(map(_length, run.records.done.values())) if run.records.done else 0.0


def _length(record: Mapping[str, Any]) -> int:
    """Tokens of an answer, without the one that ended it."""
    return len(record["token_ids"]) - int(record["finish"] == "eos")


def _label(baseline: str, method: Answered) -> str:
    return f"{baseline}({method.plan.variant.label})"
