"""Text in, text out: order, batches, broadcasting, and images that cannot be read."""

from __future__ import annotations

import copy
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import vlmfix
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import render as render_prompt
from vlmfix.inference.pictures import open_images

PICTURES = [render(sample_scene(3, index)) for index in range(5)]
PROMPTS = ["Describe the image.", "Is there a dog in the image?", "What color is the car?", "Hi", "How many?"]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return vlmfix.load()


def test_order_and_batches(loaded: tuple[Any, Any]) -> None:
    alone = [
        vlmfix.generate(*loaded, picture, prompt, max_new_tokens=12)
        for picture, prompt in zip(PICTURES, PROMPTS, strict=True)
    ]
    counted: list[int] = []
    for batch_size in (1, 2, 8):
        together = vlmfix.generate(
            *loaded, PICTURES, PROMPTS, max_new_tokens=12, batch_size=batch_size, progress=counted.append
        )
        assert together == alone
    assert counted == [1] * 5 + [2, 2, 1] + [5]


def test_one_serves_all(loaded: tuple[Any, Any]) -> None:
    asked = vlmfix.generate(*loaded, PICTURES[0], PROMPTS, max_new_tokens=4)
    assert asked == vlmfix.generate(*loaded, PICTURES[:1] * 5, PROMPTS, max_new_tokens=4)
    shown = vlmfix.generate(*loaded, PICTURES, PROMPTS[0], max_new_tokens=4)
    assert shown == vlmfix.generate(*loaded, PICTURES, PROMPTS[:1] * 5, max_new_tokens=4)
    assert isinstance(vlmfix.generate(*loaded, PICTURES[0], PROMPTS[0], max_new_tokens=1), str)


def test_text_only_and_several_images(loaded: tuple[Any, Any]) -> None:
    mixed = vlmfix.generate(*loaded, [None, PICTURES[:2], PICTURES[2]], PROMPTS[:3], max_new_tokens=4)
    assert mixed[0] == vlmfix.generate(*loaded, None, PROMPTS[0], max_new_tokens=4)
    assert mixed[1] == vlmfix.generate(*loaded, [PICTURES[:2]], PROMPTS[1], max_new_tokens=4)[0]


def test_methods_by_name_object_and_list(loaded: tuple[Any, Any]) -> None:
    plain = vlmfix.generate(*loaded, PICTURES, PROMPTS[0], max_new_tokens=30)
    strong = vlmfix.VAR(moved_fraction=1.0, min_image_mass=0.0, min_non_sink_share=0.0)
    steered = vlmfix.generate(*loaded, PICTURES, PROMPTS[0], strong, max_new_tokens=30)
    assert steered != plain
    assert steered == vlmfix.generate(*loaded, PICTURES, PROMPTS[0], [strong], max_new_tokens=30)
    assert vlmfix.generate(*loaded, PICTURES, PROMPTS[0], "var", max_new_tokens=30) == vlmfix.generate(
        *loaded, PICTURES, PROMPTS[0], vlmfix.VAR(), max_new_tokens=30
    )
    assert vlmfix.generate(*loaded, PICTURES, PROMPTS[0], max_new_tokens=30) == plain


def test_prompt_form_without_a_chat_template(loaded: tuple[Any, Any]) -> None:
    class Bare:
        chat_template = None
        image_token = "<image>"
        tokenizer = SimpleNamespace(chat_template=None)

    assert render_prompt("Why?", 1, Bare()) == "USER: <image>\nWhy? ASSISTANT:"
    assert render_prompt("Why?", 0, Bare()) == "USER: Why? ASSISTANT:"


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert open_images(tmp_path / "turned.jpg")[0].size == (20, 40)


def bomb() -> bytes:
    """A PNG head that promises 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def truncated(tmp_path: Path) -> bytes:
    render(sample_scene(1, 1)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.png", "is not a readable image"),
        ("text.jpg", "is not a readable image"),
        ("truncated.jpg", "is not a readable image"),
        ("bomb.png", "too many pixels to be opened safely"),
    ],
)
def test_images_that_cannot_be_read(name: str, message: str, tmp_path: Path) -> None:
    contents = {
        "empty.png": b"",
        "text.jpg": b"not a picture",
        "truncated.jpg": truncated(tmp_path),
        "bomb.png": bomb(),
    }
    (tmp_path / name).write_bytes(contents[name])
    with pytest.raises(ValueError, match=message) as caught:
        open_images(tmp_path / name)
    assert name in str(caught.value)


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image file"):
        open_images(tmp_path / "missing.png")


def test_arguments_that_do_not_go_together(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="2 images and 3 prompts"):
        vlmfix.generate(*loaded, PICTURES[:2], PROMPTS[:3])
    with pytest.raises(ValueError, match="batch_size is 0"):
        vlmfix.generate(*loaded, PICTURES, PROMPTS, batch_size=0)
    with pytest.raises(ValueError, match="num_return_sequences must be 1"):
        vlmfix.generate(*loaded, PICTURES, PROMPTS, num_return_sequences=2, num_beams=2)
    with pytest.raises(ValueError, match=r"unknown method 'varr' \(did you mean 'var'\?\)"):
        vlmfix.generate(*loaded, PICTURES, PROMPTS, "varr")


def test_a_broken_picture_shows_before_any_work(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    answered: list[int] = []
    with pytest.raises(ValueError, match=r"broken.png' is not a readable image"):
        vlmfix.generate(
            *loaded,
            [PICTURES[0], tmp_path / "broken.png"],
            "Hi",
            max_new_tokens=1,
            batch_size=1,
            progress=answered.append,
        )
    assert not answered


def test_a_model_that_gives_no_numbers_gives_no_answer(loaded: tuple[Any, Any]) -> None:
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    torch.nn.init.constant_(model.get_decoder().norm.weight, float("nan"))
    with pytest.raises(ValueError, match="scores that are not numbers"):
        vlmfix.generate(model, processor, None, "Is there a cat?", max_new_tokens=2)
