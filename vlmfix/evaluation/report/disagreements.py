"""Samples on which methods disagree, samples that none has right, and their pictures, small."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmfix.evaluation.analysis.comparison import Comparison
from vlmfix.evaluation.analysis.results import Outcome, SampleResult
from vlmfix.inference.pictures import open_images

LONGEST_SIDE = 320
"""Of a picture in the report, in pixels."""


@dataclass(frozen=True)
class Picture:
    """A small copy of a picture as a data URI."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Answer:
    """What one method said.

    Args:
        change: "fixed" or "broken" against the first method by the score, "changed" if only the verdict
            differs; "" for the first method.
    """

    method: str
    sample: SampleResult
    change: str = ""


@dataclass(frozen=True)
class Disagreement:
    """A sample on which at least one method differs from the first.

    Args:
        sample: as the first method answered it.
        repeat: number of the repeat; None if each sample has one only.
        answers: of the first method, then of those that differ from it.
        same: methods with the verdict and score of the first.
    """

    sample: SampleResult
    repeat: int | None
    answers: list[Answer]
    same: list[str]


@dataclass(frozen=True)
class SharedFailure:
    """A sample that no method has right.

    Args:
        sample: as the first method answered it.
        repeat: number of the repeat; None if each sample has one only.
        answers: each verdict and answer once, with the methods that gave it.
    """

    sample: SampleResult
    repeat: int | None
    answers: list[tuple[list[str], SampleResult]]


def disagreements(comparison: Comparison) -> list[Disagreement]:
    """Samples with different verdicts or scores, in a fixed order that is as good as random.

    Failed samples do not count, nor do samples that were asked differently.
    """
    first = comparison.rows[0].outcome
    answered = [(row.outcome.method, _by_key(row.outcome)) for row in comparison.others]
    several = len(set(first.repeats.tolist())) > 1
    found = []
    for (id_, repeat), before in _by_key(first).items():
        answers, same = [Answer(first.method, before)], []
        for method, samples in answered:
            after = samples.get((id_, repeat))
            if after is None or after.prompt != before.prompt:
                continue
            if change := _change(before, after):
                answers.append(Answer(method, after, change))
            else:
                same.append(method)
        if len(answers) > 1:
            found.append(Disagreement(before, repeat if several else None, answers, same))
    return sorted(found, key=_shuffled)


def shared_failures(comparison: Comparison) -> list[SharedFailure]:
    """Samples that every method answered and none has wholly right, the lowest mean score first.

    The methods are those of `disagreements`; with a single one there is nothing to share. Equal scores stand
    in a fixed order that is as good as random.
    """
    first = comparison.rows[0].outcome
    asked = [
        (outcome.method, _by_key(outcome)) for outcome in (first, *(row.outcome for row in comparison.others))
    ]
    if len(asked) < 2:
        return []
    several = len(set(first.repeats.tolist())) > 1
    found: list[tuple[float, SharedFailure]] = []
    for (id_, repeat), before in asked[0][1].items():
        given = [(method, samples.get((id_, repeat))) for method, samples in asked]
        scores: list[float] = []
        answers: dict[tuple[str, str | None], tuple[list[str], SampleResult]] = {}
        for method, sample in given:
            if sample is None or sample.prompt != before.prompt:
                break
            scores.append(sample.score or 0.0)
            answers.setdefault((sample.verdict, sample.answer), ([], sample))[0].append(method)
        if len(scores) == len(asked) and max(scores) < 1:
            failure = SharedFailure(before, repeat if several else None, list(answers.values()))
            found.append((sum(scores), failure))
    return [failure for _, failure in sorted(found, key=lambda each: (each[0], _shuffled(each[1])))]


def thumbnail(path: Path) -> Picture | None:
    """A small copy for the report; None if the file is missing or no picture."""
    try:
        [image] = open_images(path)
    except (OSError, ValueError):
        return None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=72, method=4)
    return Picture(
        f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width, image.height
    )


def _by_key(outcome: Outcome) -> dict[tuple[str, int], SampleResult]:
    return {
        (sample.id, int(repeat)): sample
        for sample, repeat in zip(outcome.samples, outcome.repeats, strict=True)
        if sample.score is not None
    }


def _shuffled(found: Disagreement | SharedFailure) -> tuple[bytes, int]:
    """A fixed order that is as good as random."""
    return hashlib.sha256(found.sample.id.encode()).digest(), found.repeat or 0


def _change(before: SampleResult, after: SampleResult) -> str:
    if after.score != before.score:
        return "fixed" if (after.score or 0) > (before.score or 0) else "broken"
    return "changed" if after.verdict != before.verdict else ""
