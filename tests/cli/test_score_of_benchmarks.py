"""`vlmfix score` for a benchmark of somebody else's: found in a folder, and broken in every way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import jobs

COMMAND = '''
"""The command `vlmfix score birds`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vlmfix.evaluation.tasks.scored_files import ScoredFiles

from .counting import lines_of


def score(
    answers: Annotated[Path, typer.Option(help="File with one answer a line.")],
    word: Annotated[str, typer.Option(help="What counts as right.")] = "bird",
) -> ScoredFiles:
    """Lines that say bird."""
    lines = lines_of(answers)
    if not lines:
        raise ValueError(f"{answers} is empty; write an answer a line")
    right = sum(word in line for line in lines)
    table = Table("figure", "value")
    table.add_row("accuracy", f"{right / len(lines):.2f}")
    return ScoredFiles({"accuracy": right / len(lines)}, [table], ["birds are rare"])
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one benchmark, `birds`."""
    birds = tmp_path / "mine" / "birds"
    birds.mkdir(parents=True)
    (birds / "task.py").write_text("raise RuntimeError('not needed to score files')")
    (birds / "cli.py").write_text(COMMAND)
    (birds / "counting.py").write_text("def lines_of(path):\n    return path.read_text().splitlines()\n")
    (tmp_path / "answers").write_text("a bird\na cat\n")
    return birds


def test_by_name(folder: Path, tmp_path: Path) -> None:
    score = ("score", "--tasks", folder.parent, "birds", "--answers", tmp_path / "answers")
    result = jobs.cli(*score)
    assert result.exit_code == 0, result.stderr
    assert "0.50" in result.stdout
    assert "note: birds are rare" in result.stdout
    assert jobs.cli(*score, "--word", "a", "--json").stdout.split() == ["{", '"accuracy":', "1.0", "}"]
    assert "Lines that say bird." in jobs.cli("score", "--tasks", folder.parent, "--help").stdout
    assert "What counts as right." in jobs.cli(*score[:4], "--help").stdout


def test_its_errors_are_for_users(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("")
    said = jobs.refused("score", "--tasks", folder.parent, "birds", "--answers", tmp_path / "answers")
    assert said == f"error: {tmp_path / 'answers'} is empty; write an answer a line"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("raise RuntimeError('no birds')", "no birds"),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("", "has no function score; define it, or remove the file"),
    ],
)
def test_a_broken_one_breaks_only_itself(content: str, said: str, folder: Path) -> None:
    (folder / "cli.py").write_text(content)
    assert said in jobs.refused("score", "--tasks", folder.parent, "birds", "--answers", "x")
    result = jobs.cli("score", "--tasks", folder.parent, "--help")
    assert result.exit_code == 0
    assert "warning: left out: birds (" in result.stderr
    assert said in result.stderr
    assert "pope" in result.stdout
    assert jobs.cli("score", "--tasks", folder.parent, "pope", "--help").exit_code == 0


def test_one_that_scores_no_files(folder: Path) -> None:
    (folder / "cli.py").unlink()
    assert "birds" in jobs.refused("score", "--tasks", folder.parent, "birds")
    assert "birds" not in jobs.cli("score", "--tasks", folder.parent, "--help").stdout
