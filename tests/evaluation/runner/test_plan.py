"""What a job asks, before any model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.benchmarks import SHAPES, write_task
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.plan import prepare


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("return in_order(", "return print(", r"Dogs.samples gives no list of Sample but null"),
        ("return in_order(", "return len([1, 2]) or list(", r"Dogs.samples gives no list of Sample but 2"),
        (
            'else "no"',
            'else "left"',
            "sample dogs/0000.* of dogs has the target 'left'; that of a yes/no question must be yes or no",
        ),
    ],
)
def test_samples_of_a_benchmark_that_cannot_be_asked(
    before: str, after: str, message: str, world: Path, tmp_path: Path
) -> None:
    write_task(tmp_path / "mine", "dogs", SHAPES.replace(before, after))
    settings = {"tasks": ["dogs"], "tasks_from": [str(tmp_path / "mine")], "data": str(world)}
    with pytest.raises(ValueError, match=message):
        prepare(make_job({**settings, "output": str(tmp_path / "out")}))
