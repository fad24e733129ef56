"""lmms-eval's own loop beside the harness: both answer alike."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; make test-integrations has it")
from benchmarks import lmms_eval_loop

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("task", "images", "answers"), [("pope", "1", 18), ("chair", "2", 2)])
def test_table(task: str, images: str, answers: int) -> None:
    app = typer.Typer()
    app.command()(lmms_eval_loop.main)
    result = CliRunner().invoke(app, ["--task", task, "--images", images, "--rounds", "1"])
    assert result.exit_code == 0, result.output
    assert f"0 of {answers}" in result.output
    assert "ratio" in result.output
