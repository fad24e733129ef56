"""Pictures with marks, made once and kept."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlmfix.evaluation.datasets.marked_pictures import marked_picture


def grey(path: Path) -> Path:
    Image.new("RGB", (8, 8), (100, 100, 100)).save(path)
    return path


def red(picture: Image.Image) -> Image.Image:
    return Image.new("RGB", picture.size, "red")


def never(picture: Image.Image) -> Image.Image:
    raise AssertionError("it is there already")


def test_it_is_drawn_once(tmp_path: Path) -> None:
    source, cache = grey(tmp_path / "1.png"), tmp_path / "a" / "cache"
    path = marked_picture(source, {"boxes": [1]}, red, cache)
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)
    assert marked_picture(source, {"boxes": [1]}, never, cache) == path
    assert list(cache.iterdir()) == [path]


def test_other_marks_and_other_pictures_have_files_of_their_own(tmp_path: Path) -> None:
    source = grey(tmp_path / "1.png")
    paths = {marked_picture(source, {"boxes": [number]}, red, tmp_path / "cache") for number in (1, 2)}
    Image.new("RGB", (8, 8)).save(source)
    paths.add(marked_picture(source, {"boxes": [1]}, red, tmp_path / "cache"))
    assert len(paths) == 3


def test_what_cannot_be_opened_is_left_to_fail(tmp_path: Path) -> None:
    missing, broken = tmp_path / "no.png", tmp_path / "broken.png"
    broken.write_text("no picture")
    for source in (missing, broken):
        assert marked_picture(source, {}, never, tmp_path / "cache") == source
    assert not (tmp_path / "cache").exists()
