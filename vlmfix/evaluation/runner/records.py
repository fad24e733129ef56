"""What is asked and recorded of one sample."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlmfix.evaluation.runner.run_store import Identity
from vlmfix.evaluation.sample import UNREACHED, Sample
from vlmfix.inference.output import Answer

Judge = Callable[[Sample, str, bool], Mapping[str, Any]]
"""What records keep of the score of an answer, truncated or not; see `score_fields`."""


@dataclass(frozen=True)
class Draw:
    """One repeat of a sample, and the key of its record.

    Args:
        sample: the question.
        repeat: 0, or the number of the repeat where a protocol draws several.
        seed: of the run.
        key: see `vlmfix.evaluation.runner.run_store.sample_key`.
    """

    sample: Sample
    repeat: int
    seed: int
    key: str

    @property
    def identity(self) -> Identity:
        """Sample and repeat."""
        return self.sample.id, self.repeat

    @property
    def order(self) -> tuple[bytes, str, str, int]:
        """Where it stands in a worker's queue: questions about one image follow each other."""
        cluster = hashlib.sha256(self.sample.cluster.encode()).digest()
        return cluster, self.sample.cluster, self.sample.id, self.repeat


def record_head(draw: Draw, prompt: str, batch_size: int) -> dict[str, Any]:
    """What a record says of its question.

    Args:
        draw: what was asked.
        prompt: in these words.
        batch_size: number of prompts in its batch.
    """
    return {
        "id": draw.sample.id,
        "repeat": draw.repeat,
        "seed": draw.seed,
        "key": draw.key,
        "image": None if draw.sample.image is None else str(draw.sample.image),
        "prompt": prompt,
        "batch_size": batch_size,
        "host": platform.node(),
        "written_at": time.time(),
    }


def judged(judge: Judge, sample: Sample, text: str, *, truncated: bool) -> dict[str, Any]:
    """The score of an answer; without one where the scorer fails, which comes out when all is scored."""
    try:
        return dict(judge(sample, text, truncated))
    except Exception:
        return {"parsed": None}


def reasoning_fields(answer: Answer) -> dict[str, Any]:
    """What a record keeps of a reasoning part; one that did not end is no answer, and is not judged."""
    if answer.reasoning is None:
        return {}
    found = {"reasoning": answer.reasoning, "n_reasoning_tokens": answer.reasoning_tokens}
    if answer.reached:
        return found
    return found | {
        "status": "error",
        "error_type": UNREACHED,
        "error": f"the reasoning did not end within {len(answer.token_ids)} tokens; raise max_new_tokens",
    }
