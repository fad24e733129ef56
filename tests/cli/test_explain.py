"""The command `vlmfix explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vlmfix.cli.app import app
from vlmfix.evaluation.datasets import demo_scene, render

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    render(demo_scene()).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["explain", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["explain", *arguments])
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


@pytest.mark.slow
def test_the_demo_scene(tmp_path: Path) -> None:
    output = run()
    assert "a purple tv" in output
    assert "under var:" in output
    assert "Not in the picture, but in the answer: tv." in output
    assert "written to explain.html" in output
    page = (tmp_path / "explain.html").read_text()
    assert "share of the picture taken away" in page
    assert "in grey what chance gives" in page


def test_a_picture_with_its_numbers(picture: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    output = run(
        *("--image", str(picture), "--prompt", "Is there a cat in the image?", "--answer-token", "yes"),
        *("--output", str(page), "--json", str(tmp_path / "numbers.json"), "--maps", "band,contrast"),
    )
    assert f"{picture}: Yes" in output
    assert page.is_file()
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["greedy"]["text"] == "Yes"
    assert "method" not in numbers


@pytest.mark.slow
def test_over_a_folder(world: Path, tmp_path: Path) -> None:
    output = run("--data", str(world), "--limit", "2", "--json", "numbers.json", "--max-new-tokens", "24")
    assert "2 pictures" in output
    assert "sink_dimensions 23, 117" in output
    assert json.loads((tmp_path / "numbers.json").read_text())["pictures"] == 2
    assert "What 2 pictures say of the values" in (tmp_path / "explain.html").read_text()


def test_bad_input_is_one_line(picture: Path, world: Path, tmp_path: Path) -> None:
    assert "no image file" in refused("--image", "none.png")
    assert "it is a folder" in refused("--image", str(tmp_path))
    assert "which has no words" in refused("--image", str(picture), "--answer", "...")
    assert "no word 'zebra'" in refused(
        "--image", str(picture), "--answer", "A cat.", "--answer-token", "zebra"
    )
    assert "maps has 'heat'" in refused("--image", str(picture), "--maps", "heat")
    assert "name the picture with --image" in refused("--instances", str(world / "instances.json"))
    assert "lists no picture 'scene.png'" in refused(
        "--image", str(picture), "--instances", str(world / "instances.json")
    )
    assert "leave --method out" in refused("--data", str(world), "--method", "var")
    assert "--limit 3 bounds the pictures of --data" in refused("--limit", "3")
    assert "explain needs instances" in refused("--data", str(tmp_path))
    assert not (tmp_path / "explain.html").exists()


def test_pages_that_cannot_be_written_are_refused_before_any_work(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file/page.html", "file/deeper/page.html", "/proc/none/page.html"):
        assert "nothing can be written to" in refused("--image", str(picture), "--output", place)
    assert "is a folder; name a file in it" in refused("--image", str(picture), "--output", str(tmp_path))
    assert "nothing can be written to" in refused("--image", str(picture), "--json", "file/numbers.json")


def test_a_broken_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert "is not a readable image" in refused("--image", str(tmp_path / "cut.png"))
