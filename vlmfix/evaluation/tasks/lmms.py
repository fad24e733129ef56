"""Benchmarks that lmms-eval has, too, and what its samples say of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from vlmfix.evaluation.analysis.results import SampleResult
from vlmfix.evaluation.sample import Sample


class KnownToLmms(ABC):
    """A benchmark whose metrics have names of their own in the samples of lmms-eval."""

    @abstractmethod
    def lmms_fields(self, sample: Sample, result: SampleResult) -> dict[str, Any]:
        """What samples of lmms-eval have of an answer beside its text: a value for each of their metrics.

        Args:
            sample: what was asked.
            result: the answer.
        """
