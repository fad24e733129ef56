"""What the shell offers on TAB, through the variables by which it asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.paths import BENCHMARKS
from vlmfix.cli.app import app
from vlmfix.evaluation.tasks.registry import task_names
from vlmfix.methods.registry import method_names


def offered(line: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    environment = {
        "_VLMFIX_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    result = CliRunner().invoke(app, [], prog_name="vlmfix", env=environment)
    assert result.exit_code == 0, result.stderr
    assert not result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_methods(command: str) -> None:
    assert set(offered(f"vlmfix {command} --method ")) == {*method_names(), "greedy", "auto"}
    assert offered(f"vlmfix {command} --method va") == ["vaf", "var"]
    assert offered(f"vlmfix {command} --method gree") == ["greedy"]
    assert offered(f"vlmfix {command} --method nothing") == []


def test_methods_after_a_plus() -> None:
    assert offered("vlmfix generate --method var+v") == [
        f"var+{name}" for name in method_names() if name.startswith("v") and name != "var"
    ]
    assert offered("vlmfix generate --method var+vhr+ad") == [
        f"var+vhr+{name}" for name in method_names() if name.startswith("ad")
    ]
    assert offered("vlmfix generate --method var+gree") == []


def test_methods_that_can_be_calibrated() -> None:
    assert offered("vlmfix calibrate --method ad") == ["adaptinfer", "adhh", "adaiat"]


@pytest.mark.parametrize("command", ["generate", "methods", "calibrate", "eval"])
def test_models(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "models/llava", "models/.hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "list.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    begin = f"vlmfix {command} --model "
    assert offered(begin) == ["tiny-llava", "tiny-qwen2.5-vl", "mine", "models"]
    assert offered(f"{begin}tiny-q") == ["tiny-qwen2.5-vl"]
    assert offered(f"{begin}models/") == ["models/llava"]
    assert offered(f"{begin}models/.h") == ["models/.hidden"]
    assert offered(f"{begin}~/mi") == ["~/mine"]
    assert offered(f"{begin}{tmp_path}/mi") == [f"{tmp_path}/mine"]
    assert offered(f"{begin}nowhere/") == []


def test_benchmarks(tmp_path: Path) -> None:
    assert offered("vlmfix eval ") == task_names()
    assert offered("vlmfix eval pope v") == ["vqa"]
    (tmp_path / "vegetables").mkdir()
    (tmp_path / "vegetables" / "task.py").touch()
    assert offered(f"vlmfix eval --tasks {tmp_path} v") == ["vegetables", "vqa"]
    assert offered("vlmfix eval --tasks /nowhere v") == ["vqa"]


def test_commands() -> None:
    assert offered("vlmfix ge") == ["generate"]
    assert offered("vlmfix score ") == BENCHMARKS
    assert "--answers" in offered("vlmfix score pope --a")
