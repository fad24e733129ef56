"""Parts of a benchmark: whole images, the same ones in any order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.subset import subset

IDS = (42, 73, 74, 133, 136, 139, 143, 164, 192, 196)


def of_coco(id: int) -> str:
    return f"COCO_val2014_{id:012d}.jpg"


def question(
    name: str, number: int = 0, split: str = "random", *, target: str = "yes", **meta: str
) -> Sample:
    sample = f"{split}/{name}/{number}"
    return Sample(sample, name, Path("val2014") / name, "?", target, {"split": split, **meta})


POPE = [
    question(of_coco(id), number, split, target="yes" if number % 2 else "no")
    for id in IDS
    for split in ("random", "popular", "adversarial")
    for number in range(6)
]


@pytest.mark.parametrize(
    ("seed", "order"),
    [
        (0, (192, 74, 73, 143, 133, 139, 196, 164, 42, 136)),
        (1, (133, 136, 192, 196, 73, 139, 164, 143, 42, 74)),
    ],
)
def test_the_order_of_the_specification(seed: int, order: tuple[int, ...]) -> None:
    for count in range(1, 11):
        found = subset(POPE, images=count, seed=seed)
        assert {sample.cluster for sample in found.samples} == set(map(of_coco, order[:count]))
        assert (found.images, found.of) == (count, 10)
        assert len(found.samples) == 18 * count  # all questions of all splits


def test_neither_order_nor_folders_matter() -> None:
    mixed = random.Random(0).sample(POPE, len(POPE))
    moved = [
        Sample(each.id, each.cluster, Path("elsewhere") / each.cluster, each.prompt, each.target, each.meta)
        for each in mixed
    ]
    chosen = {sample.id for sample in subset(moved, images=4).samples}
    assert chosen == {sample.id for sample in subset(POPE, images=4).samples}
    found = subset(mixed, images=4).samples
    assert found == [sample for sample in mixed if sample.id in chosen]


@pytest.mark.parametrize(
    ("limit", "images"),
    [(1, 1), (18, 1), (27, 2), (28, 2), (90, 5), (10_000, 10), (0.1, 1), (0.11, 2), (1.0, 10), (None, 10)],
)
def test_limits_are_images(limit: int | float | None, images: int) -> None:
    found = subset(POPE, limit)
    assert found.images == images
    assert found.words == ("" if images == 10 else f"{images} of 10 images, {18 * images} samples")
    assert len(found.samples) == 18 * images


def test_strata_give_their_share() -> None:
    sizes = {"a": 216, "b": 104, "c": 58}
    samples = [
        question(f"{name}{each}.jpg", split=name) for name, size in sizes.items() for each in range(size)
    ]
    taken = subset(samples, images=20).samples
    assert {name: sum(each.meta["split"] == name for each in taken) for name in sizes} == {
        "a": 11,
        "b": 6,
        "c": 3,
    }
    one_each = subset(samples, images=1)
    assert one_each.images == 3


def test_an_image_of_several_strata_counts_in_its_first() -> None:
    shared = [question("x.jpg", split=name) for name in "ba"] + [question("y.jpg", split="b")]
    assert subset(shared, images=2).images == 2
    alone = subset(shared, images=1).samples
    assert {each.cluster for each in alone} == {"x.jpg", "y.jpg"}  # the one of stratum a, and one of b


def test_a_unit_of_several_images_goes_by_its_own_name() -> None:
    pair = [
        Sample(f"{unit}/{number}", unit, Path(f"{unit}{number}.png"), "?", "yes", {})
        for unit in ("cup", "tie", "dog")
        for number in range(2)
    ]
    found = subset(pair, images=2)
    assert len(found.samples) == 4
    assert len({each.cluster for each in found.samples}) == 2


def test_another_share_of_yes_is_told() -> None:
    samples = [question(of_coco(id), target="yes" if id in (192, 74) else "no") for id in IDS]
    assert subset(samples, images=2).note == (
        "yes is right for 100 % of these questions and for 20 % of all; take more images"
    )
    assert subset(POPE, images=2).note == ""
    assert subset([question(of_coco(id), target="a dog") for id in IDS], images=2).note == ""


@pytest.mark.parametrize("limit", [0, -1, 0.0, 1.5, float("nan"), True])
def test_wrong_limits_are_refused(limit: int | float) -> None:
    with pytest.raises(ValueError, match="limit must be a count of at least 1 or a share"):
        subset(POPE, limit)


def test_wrong_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="limit_images is 0; it must be 1 or more"):
        subset(POPE, images=0)
    with pytest.raises(ValueError, match="give one of them"):
        subset(POPE, 3, images=3)
