"""The throughput program: the same questions three ways, with the same answers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import vlmfix
from benchmarks import eval_throughput

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return eval_throughput.questions(tmp_path_factory.mktemp("scenes"), 1)


def test_questions_come_image_by_image(tmp_path: Path, samples: list[Any]) -> None:
    assert len(samples) == 18
    assert {sample.cluster for sample in samples} == {samples[0].cluster}
    several = eval_throughput.questions(tmp_path, 3)
    clusters = [sample.cluster for sample in several]
    assert clusters == sorted(clusters)
    assert len(set(clusters)) == 3


@pytest.mark.parametrize("name", ["greedy", "var"])
def test_all_ways_give_the_same_answers(
    name: str, loaded: tuple[Any, Any], samples: list[Any], tmp_path: Path
) -> None:
    methods = [] if name == "greedy" else [vlmfix.make_method(name)]
    harness = eval_throughput.in_harness(*loaded, methods, samples, 8, tmp_path / "run")
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method(*loaded))
        alone, batches = (eval_throughput.in_batches(*loaded, samples, size) for size in (1, 8))
    assert alone == batches == harness
    assert {text.strip().lower() for text in alone} <= {"yes", "no"}


def test_table() -> None:
    app = typer.Typer()
    app.command()(eval_throughput.main)
    options = ["--images", "1", "--rounds", "1", "--batch-size", "8", "--method", "greedy", "--method", "vhr"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    for name in ("greedy", "vhr", "one at a time", "batches", "harness", "gain"):
        assert name in result.output
    assert result.output.count("0 of 18") == 2
