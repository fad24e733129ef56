"""The command line: one line on stderr for what people can fix, the version, how it is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vlmfix
from tests.support import jobs
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--method", "varr"], "did you mean 'var'"),
        (["generate", "--method", "var+varr"], "did you mean 'var'"),
        (["generate", "--method", "var+vhr", "--set", "head_scale=2"], "write var.head_scale"),
        (
            ["generate", "--method", "var", "--set", "vhr.head_scale=2"],
            "--set vhr.head_scale is of no method in --method var",
        ),
        (["generate", "--method", "var+var"], "var+var names a method twice"),
        (["generate", "--method", "fastv+divprune"], "one method that drops or merges tokens at a time"),
        (["generate", "--save-maps", "maps"], "--save-maps needs --method carve"),
        (["generate", "--method", "var", "--set", "moved=1"], "var has no parameter 'moved'"),
        (["generate", "--method", "var", "--set", "moved_fraction=2"], "it must be a number from 0 to 1"),
        (["generate", "--method", "var", "--set", "moved_fraction"], "is not KEY=VALUE"),
        (["generate", "--method", "var", "--set", "sink_dimensions=[1"], "the value is not readable"),
        (["generate", "--set", "moved_fraction=1"], "greedy has no parameters"),
        (["generate", "--compare"], "--compare needs a --method"),
        (["generate", "--image", "missing.png"], "no image file or folder 'missing.png'"),
        (["generate", "--image", "{text}"], "is not a readable image"),
        (["generate", "--image", "{empty}"], "no pictures in"),
        (["generate", "--model", "nonsense"], "neither an embedded model"),
        (["generate", "--model", "someone/some-model"], "check the name and the network"),
        (["generate", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["generate", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["generate", "--dtype", "float31"], "unknown dtype"),
        (["generate", "--device", "toaster"], "is not available here"),
        (["generate", "--device", "cuda:99"], "is not available here"),
        (["generate", "--wrong-option"], "--wrong-option"),
        (["generate", "--image", ""], "'' is no path"),
        (["generate", "--model", ""], "--model is ''"),
        (["generate", "--prompt", "a\udcffb"], "character 2 is not valid UTF-8"),
        (["generate", "--prompt", "an <image>"], "which stands for a picture"),
        (["generate", "--temperature", "nan"], "must be 0, or a number of 0.0001 or more"),
        (["generate", "--temperature", "inf"], "must be 0, or a number"),
        (["generate", "--seed", "99999999999999999999"], "--seed"),
        (["generate", "--device", "meta"], "holds no weights"),
        (["generate", "--dtype", "float8_e4m3fn"], "that no model computes in"),
        (["generate", "--method", "var", "--set", "moved_fraction=true"], "moved_fraction is True"),
        (["generate", "--method", "var", "--set", "moved_fraction=.nan"], "is no finite number"),
        (
            ["generate", "--method", "var", "--set", "first_layer=99"],
            "the layers of this model that can be edited go from 0",
        ),
        (["generate", "--method", "var", "--set", "name=x"], "var has no parameter 'name'"),
        (["generate", "--method", "gift", "--set", "enhanced_layers=3"], "it must hold a first and a last"),
        (["generate", "--method", "icd", "--set", "instruction_ids=[99999999]"], "the tokens of this model"),
        (
            ["generate", "--method", "var", *("--set", "var.moved_fraction=0", "--set", "moved_fraction=1")],
            "--set gives moved_fraction twice, 0 and 1",
        ),
        (["scenes", "--output", "{empty}"], "is there already"),
        (["scenes", "--output", ""], "'' is no path"),
        (["calibrate", "--images", "{empty}", "--output", "{empty}"], "is a folder; name a profile file"),
        (["wrong-command"], "wrong-command"),
        (["scenes", "--count", "0", "--output", "{empty}/new"], "--count"),
        (["calibrate", "--images", "{empty}"], "no pictures in"),
        (["calibrate", "--images", "{empty}", "--method", "nothing"], "unknown method"),
        (["calibrate", "--images", "{empty}", "--method", "adhh"], "has no annotated pictures"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    places = {"text": tmp_path / "text.png", "empty": tmp_path / "empty"}
    result = jobs.cli(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not result.stdout


def test_version() -> None:
    result = jobs.cli("--version")
    assert (result.exit_code, result.stdout) == (0, f"vlmfix {vlmfix.__version__}\n")


@pytest.mark.slow
@pytest.mark.parametrize("start", [[ROOT / "cli.py"], ["-m", "vlmfix"]])
def test_as_a_script(start: list[str | Path]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *start, "score", "pope", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=environment)
    assert "--labels" in result.stdout
