"""The kept runs of the speed of a machine: what counts as slower, and a run from end to end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import bench, overhead
from benchmarks.bench import Ratio

TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}


def test_ratio() -> None:
    assert Ratio.of([1.0, 1.1, 1.2, 1.3, 1.4]) == Ratio(1.2, pytest.approx(0.1))


@pytest.mark.parametrize(
    ("now", "before", "slower"),
    [
        (Ratio(1.06, 0.0), Ratio(1.0, 0.0), True),
        (Ratio(1.05, 0.0), Ratio(1.0, 0.0), False),
        (Ratio(1.10, 0.03), Ratio(1.0, 0.03), False),
        (Ratio(1.12, 0.03), Ratio(1.0, 0.03), True),
        (Ratio(0.9, 0.0), Ratio(1.0, 0.0), False),
    ],
)
def test_slower(now: Ratio, before: Ratio, slower: bool) -> None:
    assert now.is_slower_than(before) is slower


def ran(folder: Path, *options: str) -> Any:
    app = typer.Typer()
    app.command()(bench.main)
    asked = ("--size", "tiny", "--tokens", "2", "--rounds", "2", "--method", "greedy", "--method", "vhr")
    return CliRunner().invoke(app, [*asked, "--device", "cpu", "--runs", str(folder), *options])


@pytest.mark.slow
def test_runs_are_kept_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(overhead.SIZES, "tiny", TINY)
    first = ran(tmp_path)
    assert first.exit_code == 0, first.output
    assert "no earlier run of this machine with these settings" in first.output
    [path] = tmp_path.iterdir()
    [run] = json.loads(path.read_text())
    assert run["machine"] == path.stem == bench.machine_kind("cpu")
    assert set(run["methods"]) == {"greedy", "vhr"}
    for figures in run["methods"].values():
        figures["decode"] = asdict(Ratio(1e-3, 0.0))
        figures["prefill"] = asdict(Ratio(1e3, 0.0))
    path.write_text(json.dumps([run]))
    other = ran(tmp_path, "--tokens", "3")
    assert "no earlier run of this machine with these settings" in other.output
    again = ran(tmp_path)
    assert again.exit_code == 1
    assert "slower: vhr, decode: " in again.output
    assert "slower: vhr, prefill" not in again.output
    assert len(json.loads(path.read_text())) == 3
