"""What a command costs before it works: help, completion and scores import neither torch nor transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HEAVY = ("torch", "transformers", "datasets", "scipy", "accelerate")
"""Packages that take long to import."""

CODE = """
import sys
from vlmfix.cli import main
try:
    main()
finally:
    print(*sorted(set(sys.argv.pop(0).split()) & set(sys.modules)), file=sys.stderr)
"""


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


@pytest.mark.parametrize(
    "command",
    [
        [],
        *(
            [name]
            for name in ("generate", "chat", "methods", "calibrate", "scenes", "eval", "report", "score")
        ),
        *(["score", name] for name in ("pope", "chair", "vqa")),
    ],
    ids=" ".join,
)
def test_help(command: list[str]) -> None:
    assert heavy_after(*command, "--help") == []


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
