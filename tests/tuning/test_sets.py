"""Three sets of images."""

from itertools import combinations

import pytest

from vlmfix.evaluation.sample import Sample
from vlmfix.tuning.sets import Sizes, ThreeSets, first_images


def samples(images: int) -> list[Sample]:
    """Two questions about each image."""
    return [
        Sample(f"q/{image}/{number}", f"image {image}", None, "?", "yes", {})
        for image in range(images)
        for number in range(2)
    ]


def clusters(several: list[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.cluster for sample in several))


def test_no_image_is_in_two_sets_and_all_its_questions_are_in_one() -> None:
    sets = ThreeSets.of(samples(200), Sizes(30, 30, 60), name="data")
    parts = [sets.search, sets.choice, sets.test]
    assert [len(clusters(part)) for part in parts] == [30, 30, 60]
    assert [len(part) for part in parts] == [60, 60, 120]
    for one, other in combinations(parts, 2):
        assert not set(clusters(one)) & set(clusters(other))


def test_where_an_image_belongs_does_not_depend_on_the_others() -> None:
    few, many = (ThreeSets.of(samples(count), Sizes(1000, 1000, 1000), name="data") for count in (100, 300))
    for part in ("search", "choice", "test"):
        assert set(clusters(getattr(few, part))) <= set(clusters(getattr(many, part)))


def test_the_first_images_of_more_are_those_of_fewer() -> None:
    sets = ThreeSets.of(samples(200), Sizes(), name="data")
    assert clusters(first_images(sets.search, 10)) == clusters(sets.search)[:10]
    assert len(first_images(sets.search, 10)) == 20


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the search set of mine has \d images of 30; it needs 10 at least"):
        ThreeSets.of(samples(30), Sizes(), name="mine")
