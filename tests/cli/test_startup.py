"""What a command costs before it works: help, completion and scores import neither torch nor transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import BENCHMARKS, ROOT

HEAVY = ("torch", "transformers", "datasets", "scipy", "accelerate", "matplotlib")
"""Packages that take long to import."""

CODE = """
import sys
from vlmfix.cli import main
try:
    main()
finally:
    print(*sorted(set(sys.argv.pop(0).split()) & set(sys.modules)), file=sys.stderr)
"""


COMMANDS = (
    "generate",
    "chat",
    "methods",
    "calibrate",
    "check",
    "scenes",
    "eval",
    "report",
    "reproduce",
    "score",
    "serve",
    "tune",
)


def heavy_after(*arguments: str | Path, **environment: str) -> list[str]:
    """Which heavy packages are imported at the end of a command, in a process of its own."""
    code = CODE.replace("sys.argv.pop(0)", repr(" ".join(HEAVY)))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    return done.stderr.split()


HELP = """
import json, sys
from vlmfix.cli import main
commands, heavy = map(json.loads, sys.argv[1:])
found = {}
for command in commands:
    sys.argv = ["vlmfix", *command.split(), "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, command
    found[command] = sorted(set(heavy) & set(sys.modules))
print(json.dumps(found), file=sys.stderr)
"""


def test_help() -> None:
    """Of all commands, one after the other in a process."""
    commands = ["", *COMMANDS, *(f"score {name}" for name in BENCHMARKS)]
    done = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(commands), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(done.stderr) == {command: [] for command in commands}
    assert done.stdout.count("Usage:") == len(commands)


def test_list_of_published_tables() -> None:
    assert heavy_after("reproduce") == []


def test_version() -> None:
    assert heavy_after("--version") == []


@pytest.mark.parametrize(
    "words",
    [
        "",
        "generate --method var+v",
        "generate --model t",
        "eval p",
        "score ",
    ],
)
def test_completion(words: str) -> None:
    environment = {"COMP_WORDS": f"vlmfix {words}", "COMP_CWORD": str(words.count(" ") + 1)}
    assert heavy_after(_VLMFIX_COMPLETE="complete_bash", **environment) == []


def test_scores(tmp_path: Path) -> None:
    labels = [{"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}]
    answers = [{"question_id": 1, "answer": "Yes"}]
    instances = {
        "images": [{"id": 1}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 18}],
    }
    people = [{"question_id": 1, "question_type": "is", "answer_type": "yes/no", "answers": ["yes"] * 10}]
    contents = {
        "labels": labels,
        "answers": answers,
        "instances": instances,
        "captions": [{"image_id": 1, "caption": "A dog."}],
        "people": {"annotations": people},
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    for options in (
        ("pope", "--answers", "answers", "--labels", "labels", "--parser", "all"),
        ("chair", "--captions", "captions", "--instances", "instances"),
        ("vqa", "--results", "answers", "--annotations", "people"),
    ):
        places = [tmp_path / each if each in contents else each for each in options]
        assert heavy_after("score", *places) == []


def test_scores_with_intervals(tmp_path: Path) -> None:
    """They need scipy, and nothing of the models."""
    question = "What?\nA. a\nB. b\nC. c\nD. d\nE. None of the above"
    row = {"question": question, "label": "A", "type": "Object", "image": "1.jpg", "prediction": "A"}
    (tmp_path / "humble").write_text(json.dumps([row | {"question_id": number} for number in range(3)]))
    assert heavy_after("score", "humblebench", "--answers", tmp_path / "humble") == ["scipy"]
