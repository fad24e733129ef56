"""Smaller pictures as a control: their grids, their tokens, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedModel

import vlmfix
from tests.support import jobs
from vlmfix.inference.conversation import Conversation, read_messages
from vlmfix.inference.output import Answer
from vlmfix.methods.baselines.resize import BaselineResize, smaller_grid

Loaded = tuple[PreTrainedModel, Any]
PROMPT = "Describe the image."
ODD, TALL, SMALL = ((112, 112), (96, 144), (56, 56))


@pytest.fixture
def llava(loaded: Loaded) -> Loaded:
    return loaded


@pytest.fixture(scope="module")
def qwen() -> Loaded:
    return vlmfix.load("tiny-qwen2.5-vl")


def picture(size: tuple[int, int] = ODD, seed: int = 0) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype="uint8")
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def answers(loaded: Loaded, images: list[Any], method: Any, **kwargs: Any) -> list[Answer]:
    found: list[Answer] = []
    vlmfix.generate(
        *loaded, images, [PROMPT] * len(images), method, max_new_tokens=6, on_answer=found.append, **kwargs
    )
    return found


def image_tokens(loaded: Loaded, images: list[Any], method: Any) -> list[int]:
    """How many each prompt has, counted from the text without any."""
    words = answers(loaded, [None], None)[0].prompt_tokens
    around = answers(loaded, [picture()], None)[0].prompt_tokens - words
    around -= 64 if loaded[0].config.model_type == "llava" else 49
    return [answer.prompt_tokens - words - around for answer in answers(loaded, images, method)]


@pytest.mark.parametrize(
    ("height", "width", "count", "expected"),
    [
        (24, 24, 64, (8, 8)),
        (24, 24, 144, (12, 12)),
        (24, 24, 192, (14, 13)),
        (17, 23, 64, (7, 9)),
        (34, 46, 173, (11, 15)),
        (10, 30, 16, (2, 8)),
        (4, 5, 20, (4, 5)),
        (4, 5, 1, (1, 1)),
    ],
)
def test_vectors_of_the_grid(height: int, width: int, count: int, expected: tuple[int, int]) -> None:
    assert smaller_grid(height, width, count) == expected


@pytest.mark.parametrize(("count", "tokens"), [(16, 16), (36, 36), (48, 42), (64, 64)])
def test_tokens_of_an_encoder_of_one_size(count: int, tokens: int, llava: Loaded) -> None:
    method = BaselineResize(kept_tokens=count)
    assert image_tokens(llava, [picture(), picture((200, 90))], method) == [tokens] * 2


def test_tokens_of_any_size(qwen: Loaded) -> None:
    """A picture of 56 x 56 pixels has 36 tokens, the lower bound of this processor, unless it is lowered."""
    images = [picture(), picture(TALL), picture(SMALL)]
    assert image_tokens(qwen, images, BaselineResize(kept_tokens=16)) == [16, 15, 16]
    assert image_tokens(qwen, images, BaselineResize(kept_tokens=4)) == [4, 4, 4]
    assert image_tokens(qwen, images, None)[2] == 36
    assert image_tokens(qwen, images, BaselineResize(kept_tokens=36))[2] == 36


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_budget_that_holds_all_tokens_is_the_stock_model(name: str, request: Any) -> None:
    loaded = request.getfixturevalue(name)
    images = [picture(), picture(TALL)]
    stock = [answer.token_ids for answer in answers(loaded, images, None)]
    assert [answer.token_ids for answer in answers(loaded, images, BaselineResize(kept_tokens=None))] == stock
    with pytest.warns(
        vlmfix.InactiveMethodWarning, match="no more than kept_tokens=64 image tokens; lower it"
    ):
        same = answers(loaded, images, BaselineResize(kept_tokens=64))
    assert [answer.token_ids for answer in same] == stock
    smaller = [answer.token_ids for answer in answers(loaded, images, BaselineResize(kept_tokens=4))]
    assert smaller != stock


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_batch_shows_what_its_samples_show_alone(name: str, request: Any) -> None:
    loaded = request.getfixturevalue(name)
    images = [picture(SMALL, 1), picture(TALL, 2), [picture(seed=3), picture(TALL, 4)]]
    method = BaselineResize(kept_tokens=40)
    together = answers(loaded, images, method, batch_size=3)
    alone = [answers(loaded, [each], method)[0] for each in images]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_degraded_pictures_have_all_their_tokens(name: str, request: Any) -> None:
    loaded = request.getfixturevalue(name)
    method = BaselineResize(kept_tokens=9, mode="degrade")
    assert image_tokens(loaded, [picture()], method) == image_tokens(loaded, [picture()], None)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype="uint8"))
    shown = method.pictures([noise], loaded[1]).images[0]
    assert shown.size == ODD
    assert np.asarray(shown, dtype=float).std() < np.asarray(noise, dtype=float).std() / 2


def test_the_square_in_the_middle_is_shown(llava: Loaded) -> None:
    wide = Image.new("RGB", (336, 112), "black")
    wide.paste("white", (112, 0, 224, 112))
    shown = BaselineResize(kept_tokens=16).pictures([wide], llava[1])
    assert shown.images[0].size == (56, 56)
    assert np.asarray(shown.images[0]).min() > 250


def test_the_model_is_left_as_it_was(llava: Loaded) -> None:
    embeddings = llava[0].model.vision_tower.embeddings
    before = len(embeddings._forward_pre_hooks)
    answers(llava, [picture()], BaselineResize(kept_tokens=16))
    assert len(embeddings._forward_pre_hooks) == before


def test_beside_methods_of_attention_and_beams(llava: Loaded) -> None:
    method = vlmfix.VAF()
    assert answers(llava, [picture()], [BaselineResize(kept_tokens=16), method], num_beams=2)
    assert method.edit_stats().site_share


def test_what_cannot_be_shown_smaller_is_refused(llava: Loaded) -> None:
    class LlavaNextImageProcessor:
        pass

    other = SimpleNamespace(image_processor=LlavaNextImageProcessor())
    with pytest.raises(vlmfix.UnsupportedError, match="LlavaNextImageProcessor is not known to make fewer"):
        BaselineResize().pictures([picture()], other)  # type: ignore[arg-type]
    with pytest.raises(vlmfix.UnsupportedError, match="BaselineResize and CARVE change the pictures each"):
        answers(llava, [picture()], [vlmfix.CARVE(), BaselineResize()])
    with pytest.raises(vlmfix.UnsupportedError, match="leaves the model alone, so that attaching it"):
        BaselineResize()(llava[0])


def test_a_processor_that_pads_pictures_is_refused(llava: Loaded) -> None:
    class CLIPImageProcessor:
        crop_size, size = {"height": 112, "width": 112}, {"shortest_edge": 120}
        do_center_crop = True

    own = SimpleNamespace(image_processor=CLIPImageProcessor(), patch_size=14)
    with pytest.raises(vlmfix.UnsupportedError, match="does not cut the largest square"):
        BaselineResize(kept_tokens=4).pictures([picture()], own)  # type: ignore[arg-type]


def test_videos_are_refused(qwen: Loaded) -> None:
    content = [{"type": "video", "video": [picture(), picture()]}, {"type": "text", "text": PROMPT}]
    asked: Conversation = read_messages([{"role": "user", "content": content}])
    with pytest.raises(vlmfix.UnsupportedError, match="a prompt shows a video; ask about its frames"):
        vlmfix.generate(*qwen, messages=asked, method=BaselineResize(), max_new_tokens=2)


def test_a_processor_that_makes_other_numbers_of_tokens_is_noticed(
    qwen: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = BaselineResize.pictures
    monkeypatch.setattr(
        BaselineResize,
        "pictures",
        lambda *args, **kwargs: dataclasses.replace(shown(*args, **kwargs), arguments={}),
    )
    with pytest.raises(vlmfix.UnsupportedError, match=r"makes \[36\] image tokens .* and not \[16\]"):
        answers(qwen, [picture()], BaselineResize(kept_tokens=16))


def test_the_harness_shows_them(tmp_path: Path, llava: Loaded) -> None:
    method = BaselineResize(kept_tokens=16)
    asked = jobs.draws(jobs.samples(tmp_path, 1, jobs.QUESTIONS[:1]))
    found = {}
    for name, methods in (("plain", ()), ("smaller", (method,))):
        run = jobs.start(tmp_path / name)
        jobs.worker(llava, methods).work(run, asked, max_errors=0)
        [found[name]] = jobs.answered(run, asked).values()
    assert found["plain"]["n_prompt_tokens"] - found["smaller"]["n_prompt_tokens"] == 64 - 16


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kept_tokens": 0}, "kept_tokens is 0; it must be a whole number from 1 on"),
        ({"mode": "pool"}, "mode is 'pool'; it must be one of 'resize', 'degrade'"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BaselineResize(**parameters)
