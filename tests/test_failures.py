"""What is said of an exception: a line for the user, the package that failed, or a bug."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

import vlmfix
from vlmfix.cli import generate as generate_command
from vlmfix.cli.app import app
from vlmfix.evaluation.datasets import demo_scene, render
from vlmfix.failures import Failure, failure_of, one_line
from vlmfix.inference import chat
from vlmfix.methods import validation


def failure(work: Callable[[], Any]) -> Failure:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - what is raised is judged below
        work()
    return failure_of(caught.value)


def test_an_error_for_users_is_its_message() -> None:
    said = failure(lambda: validation.check_range("alpha", float("nan"), 0, 1))
    assert said == Failure("error", "alpha is nan; it must be a number from 0 to 1", 2)
    assert failure(Path("/nowhere/x").read_text).message == "No such file or directory: '/nowhere/x'"


def test_an_operation_of_this_package_that_fails_is_a_bug() -> None:
    said = failure(lambda: validation.check_range("alpha", 1, "0", 1))  # type: ignore[arg-type]
    assert (said.kind, said.exit_code) == ("bug in vlmfix", 1)
    assert "TypeError: '<=' not supported" in said.message
    assert "validation.py:" in said.message
    assert "report it" in said.message
    assert "--debug" in said.message
    unpacking = failure(lambda: chat.SystemSlot.put(None, [], []))  # type: ignore[arg-type]
    assert unpacking.kind == "bug in vlmfix"


def test_another_package_that_fails_is_named() -> None:
    said = failure(lambda: AutoConfig.for_model("nothing"))
    assert said.exit_code == 2
    assert said.message.startswith("transformers failed with ValueError: Unrecognized model")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("[enforce fail] can't allocate memory")],
)
def test_memory(error: Exception) -> None:
    assert "out of memory" in failure_of(error).message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("from json import nothing", "cannot import name 'nothing' from 'json'"),
        ("raise OSError('libc10.so: cannot open shared object file')", "libc10.so: cannot open"),
    ],
)
def test_a_broken_installation(
    content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    found = failure(lambda: exec("import broken", {"__name__": "vlmfix.somewhere"}))
    assert (found.kind, found.exit_code) == ("error", 1)
    assert found.message.startswith("a package cannot be imported (")
    assert said in found.message
    assert failure(lambda: exec("import broken", {"__name__": "elsewhere"})) != found


def test_messages_are_one_line_that_no_terminal_obeys() -> None:
    assert one_line("a\nb \x1b[31m \udcff\u2028\ud800") == "a b \\x1b[31m \\xff \\ud800"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyError("x"), 2, "error: tests failed with KeyError: 'x'"),
        (RecursionError("too deep"), 2, "error: tests failed with RecursionError: too deep"),
        (KeyboardInterrupt(), 130, "error: stopped"),
        (vlmfix.UnsupportedError("no\nway"), 2, "error: no way"),
        (BrokenPipeError(), 1, ""),
    ],
)
@pytest.mark.parametrize("command", [["methods"], ["--debug", "methods"], ["methods", "--debug"]])
def test_every_exception_ends_in_one_line(
    error: BaseException, code: int, said: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("vlmfix.cli.display.list_methods", fail)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert lines[-1:] == ([line for line in lines if line.startswith(said)][-1:] if said else [])
    assert ("Traceback" in result.stderr) == ("--debug" in command and said != "")
    assert len(lines) <= 1 or "--debug" in command


def test_a_bug_in_a_command_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmfix.cli.display.Table", None)
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 1
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("bug in vlmfix: TypeError: 'NoneType' object is not callable (display.py:")


def test_json_of_a_run_that_breaks_off_has_what_was_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    render(demo_scene()).save(tmp_path / "a.png")
    monkeypatch.setattr(generate_command, "BATCH_SIZE", 1)
    real, calls = vlmfix.generate, []

    def generate(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("all gone")
        return real(*arguments, **options)

    monkeypatch.setattr(vlmfix, "generate", generate)
    image = ["--image", str(tmp_path / "a.png")]
    result = CliRunner().invoke(app, ["generate", *image, *image, "--json", "--max-new-tokens", "2"])
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert len(document["results"]) == 1
    assert "all gone" in document["error"]
