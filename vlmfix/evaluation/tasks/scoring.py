"""Scores in records: an answer is judged when it is written, and again only by another scorer."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task


@functools.cache
def scorer_version(task: type[Task]) -> str:
    """A digest of the code that judges answers: all Python files beside the class of a task and its bases."""
    folders = {Path(inspect.getfile(cls)).parent for cls in task.__mro__ if issubclass(cls, Task)}
    digest = hashlib.sha256()
    for content in sorted(file.read_bytes() for folder in folders for file in folder.glob("*.py")):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def score_fields(task: Task, sample: Sample, text: str, *, truncated: bool) -> dict[str, Any]:
    """What a record keeps of the score of an answer: `parsed`, `verdict`, `score` and `scorer`.

    Args:
        task: whose protocol judges; a record is of one protocol.
        sample: what was asked.
        text: raw answer.
        truncated: whether it was cut at the length limit.
    """
    score = task.judge(sample, text, truncated=truncated)
    return {
        "parsed": score.parsed,
        "verdict": score.verdict,
        "score": score.value,
        "scorer": scorer_version(type(task)),
    }


def score_of(task: Task, sample: Sample, record: Mapping[str, Any]) -> Score:
    """The score in the record of an answer, if the task's present code gave it; else that of the answer now.

    Raises:
        ValueError: scoring fails; the message names the sample, whose answer is safe.
    """
    if record.get("scorer") == scorer_version(type(task)):
        return Score(record["parsed"], record["verdict"], record["score"])
    try:
        return task.judge(sample, record["text"], truncated=record["finish"] == "length")
    except Exception as error:
        raise ValueError(
            f"{sample.id}: scoring fails ({type(error).__name__}: {error}); the answers are safe, and vlmfix "
            "report scores them again"
        ) from error
