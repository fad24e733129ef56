"""Tests of what people are told: the recipes of CONTRIBUTING.md, followed word for word, and links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.forks import run_in
from tests.support.paths import ROOT

_BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)")


def section(recipe: str) -> str:
    """What CONTRIBUTING.md says about a method or a benchmark."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split(f"[start:{recipe}]")[1].split(f"[end:{recipe}]")[0]


def follow(recipe: str, folder: Path) -> dict[str, str]:
    """Write the files of a recipe into a folder and run its commands there.

    Args:
        recipe: which section of CONTRIBUTING.md.
        folder: an empty one.

    Returns:
        What each command printed on stdout.
    """
    printed = {}
    for language, title, content in _BLOCK.findall(section(recipe)):
        if language == "sh":
            printed |= {line: run(line, folder) for line in content.splitlines()}
        else:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(content, encoding="utf-8")
    return printed


def run(line: str, folder: Path) -> str:
    """Run one command as a person would, but install a copy into `folder/installed`; returns its stdout."""
    installed = folder / "installed"
    if line.startswith("pip install -e "):
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(installed)]
        command = [sys.executable, "-m", "pip", "install", *options, *shlex.split(line)[3:]]
        subprocess.run(command, cwd=folder, check=True)
        return ""
    program, *arguments = shlex.split(line)
    return run_in(folder, program, arguments, [installed, ROOT])


@pytest.mark.parametrize("recipe", ["method", "benchmark"])
def test_there_is_little_to_read(recipe: str) -> None:
    """The recipe and the files that it names, of a method one of them."""
    text = section(recipe)
    told = text.split("To read: ")[1].partition("\n")[0]
    lines = [len((ROOT / name).read_text().splitlines()) for name in re.findall(r"`([^`]+\.py)`", told)]
    assert len(lines) > 1
    assert text.count("\n") + (max(lines) if recipe == "method" else sum(lines)) < 300


@pytest.mark.slow
def test_recipe_of_a_method(tmp_path: Path) -> None:
    Image.open(ROOT / "docs" / "scene.png").convert("RGB").save(tmp_path / "photo.jpg")
    printed = follow("method", tmp_path)
    tested, answered = (printed[line] for line in printed if not line.startswith("pip"))
    assert "3 passed" in tested
    assert answered.strip()


@pytest.mark.slow
def test_recipe_of_a_benchmark(tmp_path: Path) -> None:
    printed = follow("benchmark", tmp_path)
    assert "2 passed" in printed["pytest test_left.py"]
    assert '"left"' in (tmp_path / "runs" / "left" / "metrics.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    links = [link for link in _LINK.findall((ROOT / page).read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
