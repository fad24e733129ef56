"""The programs that measure compiled steps, where a step's time goes, and wide prompts."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import compiled, overhead, profile, wide

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
    monkeypatch.setitem(overhead.SIZES, "tiny", size)


def printed(program: Any, *options: str) -> list[str]:
    app = typer.Typer()
    app.command()(program)
    result = CliRunner().invoke(app, ["--size", "tiny", *options])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of figures for greedy and each method, and the limit of the memory."""
    settings = compiled.compiled_settings("default")
    settings["compile_config"].backend = "eager"
    monkeypatch.setattr(compiled, "compiled_settings", lambda mode: settings)
    lines = printed(compiled.main, "--method", "vhr", "--tokens", "2", "--rounds", "1")
    rows = {cells(line)[0]: cells(line)[1:] for line in lines if line.startswith("| ")}
    for name in ("greedy", "vhr"):
        assert all(float(cell) > 0 for cell in rows[name][:-1])
    assert "limit" in "".join(lines)


def test_profile() -> None:
    """VAR computes products in the place of the kernel in the two layers that it edits."""
    lines = printed(profile.main, "--method", "var", "--tokens", "2", "--rows", "100")
    rows = {cells(line)[0]: cells(line)[1:] for line in lines if line.startswith("| ")}
    assert rows["aten::baddbmm"][-2:] == ["0", "2"]
    assert rows["aten::scaled_dot_product_attention"][-2:] == ["5", "3"]


def test_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "FORMS", (wide.Form(tokens=2), wide.Form(beams=2, tokens=2)))
    lines = printed(wide.main, "--method", "vhr", "--rounds", "1")
    (row,) = (cells(line) for line in lines if "2 beams" in line)
    whole, rest = row[1].rstrip(")").split(" (")
    assert float(whole) > 0
    assert rest


def test_peak_of_memory() -> None:
    """What was there before is left out, and what is gone in the end counts."""
    with wide.Resident() as watch:
        held = torch.ones(2**24)
        time.sleep(0.05)
        del held
    assert 60 < watch.most - watch.before < 100
