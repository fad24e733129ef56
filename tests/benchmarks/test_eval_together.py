"""The program for several methods in one pass: the same answers as method by method."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import eval_together

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("task", "answers"), [("pope", 36), ("chair", 4)])
def test_table(task: str, answers: int) -> None:
    app = typer.Typer()
    app.command()(eval_together.main)
    images = "1" if task == "pope" else "2"
    options = ["--task", task, "--images", images, "--rounds", "1", "--method", "greedy", "--method", "var"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert f"0 of {answers}" in result.output
    assert "greedy, var" in result.output
