"""Pipelines of transformers: a method attached around them acts in them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import pipeline

import vlmfix

pytestmark = pytest.mark.slow
PROMPTS = ("Describe the image.", "Is there a fork in the image?")


def asked(prompt: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "path": "docs/scene.png"}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_pipeline_writes_what_generate_does(batch_size: int, loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    ways: dict[str, Any] = {"max_new_tokens": 16, "return_full_text": False, "batch_size": batch_size}
    texts = {}
    for name in ("var", "vcd", "vhr", "gift", "fastv"):
        method = vlmfix.make_method(name)
        with method(model, processor):
            found = pipe(text=[asked(prompt) for prompt in PROMPTS], **ways)
            assert method.edit_stats().steps > 0
        texts[name] = [each[0]["generated_text"].strip() for each in found]
        expected = vlmfix.generate(model, processor, ["docs/scene.png"] * 2, PROMPTS, name, max_new_tokens=16)
        assert texts[name] == expected
    assert texts["vcd"] != texts["gift"]
    plain = pipe(text=[asked(prompt) for prompt in PROMPTS], **ways)
    assert [each[0]["generated_text"].strip() for each in plain] == vlmfix.generate(
        model, processor, ["docs/scene.png"] * 2, PROMPTS, max_new_tokens=16
    )


def test_what_asks_several_times_is_refused(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with (
        pytest.raises(vlmfix.UnsupportedError, match="CARVE asks several times"),
        vlmfix.CARVE()(model, processor),
    ):
        pipeline("image-text-to-text", model=model, processor=processor)(text=asked(PROMPTS[0]))
