"""Patch Matters: the vectors of its specification, and whole runs of the embedded models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlmfix
from tests.support import zoo
from vlmfix import Detection, PatchMatters
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare
from vlmfix.methods.baselines.output_shift import answer_ids
from vlmfix.methods.image.patch_matters import boxes, patch_matters, prompts
from vlmfix.methods.image.patch_matters.aggregation import Job, aggregate
from vlmfix.methods.image.patch_matters.patch_matters import is_named
from vlmfix.methods.image.patch_matters.results import DetailedCaption
from vlmfix.methods.image.patch_matters.statements import (
    Groups,
    Statement,
    grouped,
    match_score,
    read_groups,
    reliable,
    same_by_embedding,
    statements,
)
from vlmfix.methods.image.patch_matters.writer import Writer
from vlmfix.methods.multi_pass import NO_IMAGE

PICTURE, OTHER = (render(sample_scene(3, index)) for index in range(2))
CAPTION = "Describe the image."
SHORT: dict[str, Any] = {"samples_per_region": 2, "max_caption_tokens": 8}


def test_vector_of_merging() -> None:
    near, far = [(10, 10, 50, 50), (20, 20, 60, 60)], [(0, 0, 50, 50), (40, 40, 90, 90)]
    assert boxes.iou(*near) == pytest.approx(0.391304, abs=1e-6)
    assert boxes.iou(*far) == pytest.approx(0.020408, abs=1e-6)
    assert boxes.merged(near, 0.3) == [(10, 10, 60, 60)]
    assert boxes.merged(far, 0.3) == far
    # The first two become one that overlaps the third, which overlaps neither.
    assert boxes.merged([(0, 0, 10, 10), (4, 0, 14, 10), (0, 0, 14, 20)], 0.4) == [(0, 0, 14, 20)]
    assert boxes.iou((3, 3, 3, 9), (3, 3, 3, 9)) == boxes.share((3, 3, 3, 9), (0, 0, 9, 9)) == 0


def test_vector_of_growing() -> None:
    quadrant = (0, 0, 100, 100)
    for box, part, after in (
        ((80, 20, 140, 60), 0.333333, (0, 0, 140, 100)),
        ((90, 20, 190, 60), 0.1, quadrant),
    ):
        assert boxes.share(box, quadrant) == pytest.approx(part, abs=1e-6)
        assert boxes.grown(quadrant, [box], 0.3) == after


def test_quadrants() -> None:
    assert boxes.quadrants((100, 60)) == [
        (0, 0, 50, 30),
        (50, 0, 100, 30),
        (0, 30, 50, 60),
        (50, 30, 100, 60),
    ]
    reaching = boxes.quadrants((200, 100), 0.5)
    assert reaching[0] == (0, 0, 150, 75)
    assert reaching[3] == (50, 25, 200, 100)
    assert boxes.in_pixels((-3, 1.6, 5.4, 1.7), (5, 4)) == (0, 2, 5, 3)
    assert boxes.scaled((50, 0, 100, 30), (200, 60)) == "[0.25, 0.00, 0.50, 0.50]"


def test_which_detections_count() -> None:
    found = [Detection((0, 0, 1, 1), name, score) for name, score in (("a", 0.2), ("b", 0.31), ("c", 0.3))]
    assert [each.label for each in boxes.kept_detections(found)] == ["b"]
    assert [each.label for each in boxes.kept_detections(found[::2])] == ["a", "c"]
    assert boxes.kept_detections([]) == []


def test_names_in_captions() -> None:
    assert is_named("dog", "Two Dogs and a box.")
    assert is_named("box", "Two boxes.")
    assert not is_named("car", "A carpet.")


def test_vectors_of_the_scores() -> None:
    first, second, weak = Statement("red", 0), Statement("blue", 1), Statement("odd", 2)
    assert match_score(0.8, 0.3) == pytest.approx(0.55)
    assert match_score(0.2, 0.1) == pytest.approx(0.15)
    groups = Groups(contradictory=((second, first),), unique=(weak,))
    assert reliable(groups, {"red": 0.55, "blue": 0.42, "odd": 0.15}, 0.3) == ["red"]
    assert reliable(groups, {"red": 0.3, "blue": 0.2, "odd": 0.31}, 0.3) == ["odd"]  # above, not at


def test_vector_of_the_reliable_list() -> None:
    said = statements(["There is a cat.", "there is  a cat!", "A dog sleeps."])
    groups = grouped(said)
    assert [each.text for each in groups.similar] == ["There is a cat."]
    assert reliable(groups, {"A dog sleeps.": 0.29}, 0.3) == ["There is a cat."]


def test_sentences() -> None:
    found = statements(["One. Two!  Three\nfour?", "", " ... ", "5 is it."])
    assert [(each.text, each.sample) for each in found] == [
        ("One.", 0), ("Two!", 0), ("Three", 0), ("four?", 0), ("5 is it.", 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "same", "conflicts"),
    [
        ("SAME: 1, 3\nCONFLICT: 2 and 4.", [[0, 2]], [[1, 3]]),
        ("- **Same**: 1,1,2\nConflicting: [3] [4]", [[0, 1]], [[2, 3]]),
        ("", [], []),
        ("I cannot say. SAME things are 1, 2", [], []),
        ("SAME: 1\nSAME: 0, 9, 99999999999999\nCONFLICT:", [], []),
    ],
)
def test_replies_of_a_language_model(reply: str, same: list[Any], conflicts: list[Any]) -> None:
    assert read_groups(reply, 4) == (same, conflicts)


def test_groups() -> None:
    """Two captions and one more say a; b and c contradict each other, although b is said twice."""
    a, b, c = [Statement("a", number) for number in range(3)], Statement("b", 0), Statement("c", 1)
    said = [a[0], b, c, Statement("b'", 2), Statement("a'", 1), Statement("d", 0), Statement("d'", 0)]
    groups = grouped(said, same=[[0, 4], [1, 3], [5, 6]], conflicts=[[3, 2], [2, 0], [0, 4]])
    assert groups.similar == (a[0],)
    assert groups.contradictory == ((b, c),)
    assert [each.text for each in groups.unique] == ["d"]  # twice in one caption
    assert [each.text for each in groups.doubtful] == ["b", "c", "d"]
    assert grouped([]) == Groups()


def test_sameness_by_embeddings() -> None:
    said = [Statement("a", 0), Statement("b", 0), Statement("c", 1), Statement("d", 2)]
    embeddings = torch.tensor([[1.0, 0], [1, 0], [3, 0.1], [0, 1]])
    assert same_by_embedding(said, embeddings, 0.9) == [[0, 2], [1, 2]]
    assert same_by_embedding([], torch.zeros(0, 1), 0.9) == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"samples_per_region": -1}, "samples_per_region is -1"),
        ({"grouping": "vote"}, "grouping is 'vote'; it must be one of 'llm', 'embedding'"),
        ({"keep_score": 2}, "keep_score is 2; it must be a number from -1 to 1"),
        ({"box_merge_iou": 1.1}, "box_merge_iou is 1.1"),
        ({"grow_share": -1}, "grow_share is -1"),
        ({"pair_iou": "0.4"}, "pair_iou is '0.4'"),
        ({"quadrant_overlap": 1}, "quadrant_overlap is 1"),
        ({"max_caption_tokens": 0}, "max_caption_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"detector": "yolo"}, "detector is 'yolo'; it must be a function, given in Python"),
        ({"scorer": 3}, "scorer is 3"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchMatters(**parameters)


class Scribe:
    """A writer that says what it is told, and what it was asked."""

    def __init__(self, replies: dict[str, str]) -> None:
        self.replies, self.asked = replies, dict[str, str]()

    def texts(self, wanted: Sequence[tuple[str, str]], *_: Any) -> list[str]:
        self.asked |= dict(wanted)
        return [self.replies.get(name, "") for name, _ in wanted]


def test_aggregation_step_by_step() -> None:
    """Contradictions are scored on the crop of the job, all else on that of its own text."""
    crop, left, right = (Image.new("RGB", (2, 2), color) for color in ("white", "red", "blue"))
    jobs = [
        Job(
            "pair",
            (0, 0, 2, 2),
            crop,
            ["A cat. It is red. A cup.", "A Cat. It is blue. A pen."],
            [left, right],
        ),
        Job("odd", (0, 0, 2, 2), crop, ["A lie.", ""], [left, right]),
        Job("dumb", (0, 0, 2, 2), crop, ["", ""], [left, right]),
    ]
    scored: list[tuple[Image.Image, list[str]]] = []
    values = {"It is red.": 0.4, "It is blue.": 0.7, "A cup.": 0.2, "A pen.": 0.9, "A lie.": 0.1}

    def scorer(image: Image.Image, texts: Sequence[str]) -> list[float]:
        scored.append((image, list(texts)))
        return [values[text] for text in texts]

    scribe: Any = Scribe({"pair, group": "CONFLICT: 2, 5", "pair, fuse": "A blue cat and a pen."})
    pair, odd, dumb = aggregate(scribe, jobs, scorer, grouping="llm", keep_score=0.3, limit=9)
    assert pair.reliable == ("A cat.", "It is blue.", "A pen.")
    assert (pair.text, pair.reply) == ("A blue cat and a pen.", "CONFLICT: 2, 5")
    assert pair.scores == {name: value for name, value in values.items() if name != "A lie."}
    assert (odd.reliable, odd.text, odd.scores) == ((), "", {"A lie.": 0.1})
    assert (dumb.groups, dumb.text) == (Groups(), "")
    assert [(image, texts) for image, texts in scored] == [
        (crop, ["It is red.", "It is blue."]), (left, ["A cup."]), (right, ["A pen."]), (left, ["A lie."])
    ]  # fmt: skip
    assert set(scribe.asked) == {"pair, group", "pair, fuse"}
    assert "5. (description 2) It is blue." in scribe.asked["pair, group"]
    # A language model that falls silent costs nothing of what is known.
    silent: Any = Scribe({})
    [pair, *_] = aggregate(silent, jobs, scorer, grouping="llm", keep_score=0.3, limit=9)
    assert pair.text == "A cat. It is red. It is blue. A pen."
    assert [each.text for each in pair.groups.unique] == ["It is red.", "A cup.", "It is blue.", "A pen."]
    with pytest.raises(ValueError, match="the scorer gives 0 scores for 1 sentences; give one for each"):
        aggregate(silent, jobs[1:], lambda *_: [], grouping="llm", keep_score=0.3, limit=9)


def test_truth_against_a_plain_pass(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    said = ["There is a dog.", "A car."]
    found = Writer(model, processor, 0, "").truth(PICTURE, said)
    yes, no = answer_ids(processor.tokenizer)
    for statement, value in zip(said, found, strict=True):
        question = f'Is this true of the image: "{statement}" Answer yes or no.'
        with torch.no_grad():
            logits = model(**prepare([[PICTURE]], [question], processor)).logits[0, -1]
        shares = logits.softmax(dim=-1)
        says_yes, says_no = (float(shares[list(ids)].sum()) for ids in (yes, no))
        assert value == pytest.approx(says_yes / (says_yes + says_no), abs=1e-4)
    assert found[0] != found[1]


def test_each_text_has_a_seed_of_its_own(loaded: tuple[Any, Any]) -> None:
    def written(seed: int, *wanted: tuple[str, int]) -> list[str]:
        writer = Writer(*loaded, seed, "item")
        return writer.captions([(*each, PICTURE) for each in wanted], CAPTION, 2.0, 8)

    both = written(0, ("left", 0), ("left", 1))
    assert both[0] != both[1]
    assert written(0, ("left", 1)) == both[1:]
    assert written(0, ("right", 0)) != both[:1] != written(1, ("left", 0))


@pytest.mark.parametrize("name", ["tiny-llava", pytest.param("tiny-qwen2.5-vl", marks=pytest.mark.slow)])
def test_from_end_to_end(name: str, tmp_path: Path) -> None:
    """The models here cannot write texts without a picture: what they write in their place is passed on."""
    model, processor = vlmfix.load(name)
    method = PatchMatters(**SHORT)
    torch.manual_seed(0)
    found = method.run(model, processor, PICTURE, CAPTION, max_new_tokens=8)
    again = PatchMatters(**SHORT).run(model, processor, PICTURE, CAPTION, max_new_tokens=8)
    assert found.record() == again.record()
    assert found.divided
    assert found.answer
    quadrants = [region for region in found.regions if region.id != "semantic"]
    assert [region.box for region in quadrants] == [
        (0, 0, 64, 64), (48, 0, 112, 64), (0, 48, 64, 112), (48, 48, 112, 112)
    ]  # fmt: skip
    assert found.semantic_source in ("attention map", "whole image")
    covers = boxes.iou(found.semantic_box or (0, 0, 0, 0), (0, 0, 112, 112)) >= 0.4
    assert covers is (found.whole is None) is (len(found.regions) == 4)
    for region in found.regions:
        assert np.array_equal(region.image, PICTURE.crop(region.box))
        assert len(region.samples) == 2
        assert {each.text for each in region.groups.doubtful} == set(region.scores)
        if region.text:
            assert f"{boxes.scaled(region.box, PICTURE.size)}: {region.text}" in found.final_prompt or (
                region.id == "semantic"
            )
    last = vlmfix.generate(model, processor, None, found.final_prompt, max_new_tokens=8)
    if found.reason != patch_matters.NO_FINAL:
        assert found.answer == last
    else:
        assert last == ""
        assert found.answer == (found.whole.text if found.whole is not None else found.global_caption)
    written = found.save(tmp_path, "room")
    record = json.loads((tmp_path / "room-regions.json").read_text())
    assert [region["id"] for region in record["regions"]] == [region.id for region in found.regions]
    assert len(written) == len(found.regions) + 1
    assert method.edit_stats().rows_touched == 1


def test_with_a_detector_and_a_scorer(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair of quadrants overlaps, and the two others enter with their own texts."""
    wide = Detection((20, 0, 92, 40), "cat", 0.9)
    asked: list[tuple[int, int]] = []

    def scorer(image: Image.Image, sentences: Sequence[str]) -> list[float]:
        asked.append(image.size)
        return [1.0] * len(sentences)

    monkeypatch.setattr(prompts, "SHORT", CAPTION)
    monkeypatch.setattr(patch_matters, "is_named", lambda label, caption: label == "cat")
    weak = Detection((0, 0, 5, 5), "dog", 0.1)
    method = PatchMatters(**SHORT, detector=lambda image: [wide, weak], scorer=scorer)
    found = method.run(*loaded, PICTURE, CAPTION, max_new_tokens=4)
    assert found.detections == (wide,)
    assert (found.semantic_source, found.semantic_box) == ("detector", (20, 0, 92, 40))
    assert [region.box for region in found.regions] == [
        (0, 0, 92, 56), (20, 0, 112, 56), (0, 56, 56, 112), (56, 56, 112, 112), (20, 0, 92, 40)
    ]  # fmt: skip
    assert [(pair.id, pair.box) for pair in found.pairs] == [("quadrants 1 and 2", (0, 0, 112, 56))]
    assert found.whole is not None
    assert found.whole.samples[0] == found.global_caption
    first, second, third, fourth, semantic = found.regions
    assert found.pairs[0].samples == (first.text, second.text)
    assert found.whole.samples[1] == semantic.text
    told = [f"- [{box}]: " in found.final_prompt for box in (
        "0.00, 0.00, 1.00, 0.50", "0.00, 0.50, 0.50, 1.00", "0.50, 0.50, 1.00, 1.00", "0.00, 0.00, 0.82, 0.50"
    )]  # fmt: skip
    assert told == [bool(found.pairs[0].text), bool(third.text), bool(fourth.text), False]
    assert (72, 40) in asked


def test_without_any_detection_quadrants_are_plain(loaded: tuple[Any, Any]) -> None:
    method = PatchMatters(samples_per_region=1, max_caption_tokens=2, detector=lambda image: [])
    found = method.run(*loaded, PICTURE, CAPTION, max_new_tokens=2)
    assert [region.box[2] - region.box[0] for region in found.regions] == [56] * 4
    assert (found.semantic_source, found.detections, found.whole) == ("whole image", (), None)


@pytest.mark.parametrize(
    ("method", "picture", "prompt", "reason"),
    [
        (PatchMatters(samples_per_region=0), PICTURE, CAPTION, PatchMatters.identity_reason),
        (PatchMatters(), None, CAPTION, NO_IMAGE),
        (PatchMatters(), PICTURE, "Is there a dog in the image?", patch_matters.YES_OR_NO),
    ],
    ids=["strength zero", "text only", "yes or no"],
)
@pytest.mark.parametrize("decoding", [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 3.0}])
def test_what_is_not_divided_is_answered_by_plain_decoding(
    method: PatchMatters, picture: Any, prompt: str, reason: str, decoding: dict[str, Any], loaded: Any
) -> None:
    torch.manual_seed(0)
    plain = vlmfix.generate(*loaded, picture, prompt, max_new_tokens=6, **decoding)
    torch.manual_seed(0)
    found = method.run(*loaded, picture, prompt, max_new_tokens=6, **decoding)
    assert (found.answer, found.divided, found.reason, found.regions) == (plain, False, reason, ())
    assert found.save(Path("nowhere"), "none") == []


def test_a_picture_of_few_tokens_is_not_divided() -> None:
    model, processor = zoo.build("qwen2_5_vl"), zoo.processor("qwen2_5_vl")
    picture = PICTURE.resize((96, 64))  # 3 x 2 tokens
    found = PatchMatters(**SHORT).run(model, processor, picture, "w31 w32", max_new_tokens=2)
    assert found.reason == patch_matters.SMALL


def test_it_refuses_several_pictures_and_conversations(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="describes one picture, and the prompt holds several"):
        vlmfix.generate(*loaded, [[PICTURE, OTHER]], CAPTION, "patch_matters")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [PICTURE, CAPTION]}]
    messages[1]["content"] = [PICTURE, {"type": "text", "text": CAPTION}]
    with pytest.raises(vlmfix.UnsupportedError, match="PatchMatters takes one text with its pictures"):
        vlmfix.generate(*loaded, messages=messages, method="patch_matters")


def test_beside_a_method_that_drops_tokens(loaded: tuple[Any, Any]) -> None:
    """No map can be read then, and the semantic patch is the whole picture."""
    found: list[DetailedCaption] = []
    methods = [PatchMatters(**SHORT), vlmfix.RandomTokens(kept_tokens=32)]
    vlmfix.generate(*loaded, PICTURE, CAPTION, methods, max_new_tokens=2, on_refinement=found.append)
    assert found[0].semantic_source == "whole image"
    assert len(found[0].regions) == 4
