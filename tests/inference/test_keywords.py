"""Words of questions: what they ask for, and what a model may put into one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vlmfix.inference.keywords import asks_yes_or_no
from vlmfix.inference.rendering import without_placeholders


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Is there a dog in the image?", True),
        ("Look closely. Doesn\u2019t the man hold a phone?", True),
        ("A dog is in the image. Please answer yes or no.", True),
        ("True or not? Yes/No", True),
        ("Can you describe the image?", False),
        ("What is on the table?", False),
        ("Is there anything to say. Describe the image.", False),
        ("", False),
    ],
)
def test_questions_that_want_a_yes_or_no(text: str, wanted: bool) -> None:
    assert asks_yes_or_no(text) is wanted


def test_what_stands_for_a_picture_is_left_out() -> None:
    processor: Any = SimpleNamespace(image_token="<image>", video_token=None)
    assert without_placeholders("A <image>cat<image>.", processor) == "A cat."
    assert without_placeholders("A <video>.", processor) == "A <video>."
