"""What samples of lmms-eval say of answers to VQA v2."""

from __future__ import annotations

from typing import Any

from vlmfix.evaluation.analysis.results import SampleResult
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.lmms import KnownToLmms

from .normalize import normalized


class VqaOfLmms(KnownToLmms):
    """The answer as it is submitted."""

    def lmms_fields(self, sample: Sample, result: SampleResult) -> dict[str, Any]:
        id = sample.id.rpartition("/")[2]
        own = {"question_id": int(id) if id.isdigit() else id, "answer": normalized(result.answer or "")}
        return {"exact_match": result.score, "submission": own}
