"""`vlmfix chat` without a terminal: turns, commands, and errors that do not end it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vlmfix
from vlmfix.cli import chat_session
from vlmfix.cli.app import app
from vlmfix.evaluation.datasets import render, sample_scene


def run(*lines: str, options: tuple[str, ...] = ()) -> Any:
    arguments = ["chat", "--max-new-tokens", "8", *options]
    return CliRunner().invoke(app, arguments, input="\n".join(lines))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"a picture {index}.png" for index in range(2)]
    for index, path in enumerate(found):
        render(sample_scene(1, index)).save(path)
    return found


def test_a_chat_reads_all_that_was_said(paths: list[Path]) -> None:
    """Streamed, under a method with settings, and from a method with a loop of its own."""
    loaded = vlmfix.load()
    result = run(
        f"/image {paths[0]}",
        "Describe the image.",
        "/method var moved_fraction=0.9",
        f"/image {paths[1]}",
        "Is there a dog?",
        "/method opera",
        "And a cat?",
        options=("--system", "Be brief."),
    )
    assert result.exit_code == 0, result.output
    said: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    expected = []
    for picture, question, method in (
        (paths[0], "Describe the image.", None),
        (paths[1], "Is there a dog?", vlmfix.VAR(moved_fraction=0.9)),
        (None, "And a cat?", "opera"),
    ):
        shown = [] if picture is None else [{"type": "image", "path": picture}]
        said.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        text = vlmfix.generate(*loaded, messages=said, method=method, max_new_tokens=8)
        expected.append(text)
        said.append({"role": "assistant", "content": text})
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == expected


def test_comparison_and_reset(paths: list[Path]) -> None:
    options = ("--image", str(paths[0]), "--method", "var")
    result = run("Describe the image.", "/compare", "/reset", "/compare", options=options)
    assert result.exit_code == 0
    assert "greedy" in result.stdout
    assert "var" in result.stdout
    assert "error: there is no answer yet to compare with" in result.stderr


ERRORS = {
    "/imag a.png": "unknown command '/imag'; use /image",
    "/image": "/image needs the path of a picture",
    "/image nowhere.png": "no image file 'nowhere.png'",
    "/method varr": "unknown method 'varr' (did you mean 'var'?)",
    "/method 'var": "close the quotation mark",
    "/method var moved_fraction=2": "moved_fraction",
    "/method vcd+vdd": "defines the logits of this model already",
    "/method gift saliency_layer=99": "saliency_layer is 99",
    "an <image>": "contains '<image>'",
}


def test_an_error_is_one_line_and_the_chat_goes_on() -> None:
    result = run(*ERRORS, "/method", "/quit", "never read")
    assert result.exit_code == 0
    *errors, last = result.stderr.strip().splitlines()
    for line, message in zip(errors, ERRORS.values(), strict=True):
        assert line.startswith("error: ")
        assert message in line
    assert last == "greedy; /method NAME changes it"
    assert not result.stdout


def test_an_interruption_stops_the_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    stock = vlmfix.generate

    def interrupted(*args: Any, messages: Any, **kwargs: Any) -> Any:
        asked.append(len(messages.messages))
        if len(asked) == 1:
            raise KeyboardInterrupt
        return stock(*args, messages=messages, **kwargs)

    monkeypatch.setattr(chat_session.vlmfix, "generate", interrupted)
    result = run("Hi", "Hello", "And now?")
    assert result.exit_code == 0
    assert "stopped; the question is not kept" in result.stderr
    assert asked == [1, 1, 3]


def test_help_lists_all_commands() -> None:
    result = run("/help")
    listed = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("/")]
    assert listed == ["/image", "/method", "/compare", "/system", "/reset", "/help", "/quit"]
    assert run("/system Be brief.", "/system").stderr.splitlines() == [
        "the system message is set",
        "there is no system message",
    ]


def test_what_does_not_fit_is_refused_before_the_chat() -> None:
    result = run("Hi", options=("--method", "varr"))
    assert result.exit_code == 2
    assert "unknown method 'varr'" in result.stderr
