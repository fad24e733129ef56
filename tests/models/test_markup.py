"""What stands around and between the placeholders of an image."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

from tests.support import families, zoo
from tests.support.zoo.shrink import IMAGE_TOKEN
from vlmfix.models.markup import ImageMarkup, image_item, image_markup

X = 9
"""The placeholder; other tokens are 1 to 8."""

# Tiles of a row follow each other, a new line ends it, and the whole image comes last: as Idefics 3 has it.
FAKE, ROW, WHOLE, LINE = 1, 2, 3, 4
TILES = ImageMarkup(
    ((FAKE, ROW), (FAKE, WHOLE)), ((FAKE,),), frozenset({FAKE, ROW, WHOLE, LINE}), frozenset()
)
BREAKS = ImageMarkup(((),), ((6,),), frozenset({5}), frozenset())
NUMBERED = ImageMarkup(((1, -1, 2),), ((3,),), frozenset(), frozenset({7, 8}))
BARE = ImageMarkup(((),), ((),), frozenset(), frozenset())


@pytest.mark.parametrize(
    ("markup", "ids", "numbers"),
    [
        (BARE, [5, X, X, 5], [-1, 0, 0, -1]),
        (BARE, [X, 5, X], [0, -1, 1]),
        (BREAKS, [5, X, X, 5, X, X, 6, 5], [-1, 0, 0, 0, 0, 0, 0, -1]),
        (BREAKS, [X, 5, X, 6, X, 5, X, 6], [0, 0, 0, 0, 1, 1, 1, 1]),  # two images side by side
        (BREAKS, [X, 6, 7, X, 6], [0, 0, -1, 1, 1]),
        (TILES, [8, FAKE, WHOLE, X, FAKE, 8], [-1, 0, 0, 0, 0, -1]),
        (
            TILES,
            [FAKE, ROW, X, FAKE, ROW, X, LINE, LINE, FAKE, WHOLE, X, FAKE, LINE, FAKE, WHOLE, X, FAKE, LINE],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 1, 1, 1, 1, -1],  # a line of the user between two images
        ),
        (TILES, [FAKE, WHOLE, X, FAKE, FAKE, WHOLE, X, FAKE], [0, 0, 0, 0, 1, 1, 1, 1]),
        (NUMBERED, [7, 1, 8, 7, 2, X, 3, 7], [-1, 0, 0, 0, 0, 0, 0, -1]),
        (NUMBERED, [1, 5, 2, X, 3], [-1, -1, 0, 0, 0]),  # what is no number ends it
        (TILES, [LINE, WHOLE, X, 8], [-1, 0, 0, -1]),  # the rest was merged with a word
    ],
)
def test_tokens_of_images(markup: ImageMarkup, ids: list[int], numbers: list[int]) -> None:
    assert markup.of_image(ids, [token == X for token in ids]) == numbers


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("idefics3", "<image>"),
        ("qwen2_5_vl", "<|vision_start|><|image_pad|><|vision_end|>"),
        ("gemma3", "<start_of_image>"),
        ("emu3", "<image>"),
        ("ovis2", "<image>"),
    ],
)
@pytest.mark.slow
def test_it_is_learned_from_the_processor(name: str, item: str) -> None:
    """What stands around the pictures of prompts is all theirs, and their words are not."""
    if name not in KNOWN:
        pytest.skip(f"this version of transformers has no {name}")
    try:
        processor = zoo.processor(name)
    except ImportError as error:  # versions differ in what needs torchvision
        pytest.skip(str(error).splitlines()[0])
    assert image_item(processor) == item
    markup = image_markup(processor, IMAGE_TOKEN)
    assert markup is not None
    assert image_markup(processor, IMAGE_TOKEN) is markup  # asked once
    model = zoo.build(name)
    inputs = zoo.prompt(name, model, (1, 2))
    words = zoo.without_images(name, model, inputs)
    for row, own in enumerate(inputs["input_ids"]):
        ids = own[inputs["attention_mask"][row].bool()].tolist()
        numbers = markup.of_image(ids, [token == IMAGE_TOKEN for token in ids])
        left = [token for token, number in zip(ids, numbers, strict=True) if number < 0]
        assert left == words["input_ids"][row][words["attention_mask"][row].bool()].tolist()
        assert max(numbers) == row  # one picture, then two


def test_a_processor_that_does_not_say() -> None:
    assert image_markup(families.PROCESSOR, families.IMAGE_TOKEN) is None
