"""Differences of two answers, and pictures in half blocks."""

from PIL import Image

from vlmfix.cli.display import mark_differences, thumbnail


def test_differing_words_are_marked() -> None:
    first, second = mark_differences("a red car and a dog", "a blue car and")
    assert first.plain.split() == ["a", "red", "car", "and", "a", "dog"]
    marked = [[text.plain[span.start : span.end] for span in text.spans] for text in (first, second)]
    assert marked == [["red", "a", "dog"], ["blue"]]


def test_thumbnail_has_two_pixels_a_cell() -> None:
    text = thumbnail(Image.new("RGB", (100, 50), "red"), columns=20)
    lines = text.plain.splitlines()
    assert [len(line) for line in lines] == [20] * 5
    assert all(span.style.color.triplet == (255, 0, 0) for span in text.spans)  # type: ignore[union-attr]
