"""Files of captions as other code writes them: how their images are found, and what is told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.chair.score_command import score_file
from vlmfix.evals.chair.scorer import Vocabulary

from tests.support.paths import OFFICIAL
from vlmfix.evaluation.files.answers import Keys

FORMATS = OFFICIAL / "formats"
INSTANCES: dict[str, Any] = {
    "images": [{"id": 11}, {"id": 22}, {"id": 33}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [{"image_id": 11, "category_id": 1}],
}
CAPTIONS = [
    {"image_id": 11, "caption": "A dog and a cat."},
    {"image_id": 22, "caption": "Nothing."},
    {"image_id": 33, "caption": "Nobody."},
]


def saved(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    words = tmp_path / "words.txt"
    words.write_text("dog, puppy\ncat\n")
    return Vocabulary.from_file(words)


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    return saved(tmp_path / "instances.json", INSTANCES)


def test_captions_by_running_numbers_need_an_index(
    instances: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    rows = [{"id": place, "response": each["caption"]} for place, each in enumerate(CAPTIONS, 1)]
    captions = saved(tmp_path / "captions.json", rows)
    named = [
        {"id": place, "image": f"COCO_val2014_{each['image_id']:012d}.jpg"}
        for place, each in enumerate(CAPTIONS, 1)
    ]
    with pytest.raises(ValueError, match="images that the COCO files lack"):
        score_file(captions, [instances], vocabulary=vocabulary)
    index = saved(tmp_path / "index.json", named)
    report = score_file(captions, [instances], vocabulary=vocabulary, index=index)
    assert (report.score.chair_i, report.score.captions) == (0.5, 3)
    assert "joined by the numbers in index.json" in report.notes[0]
    assert report.files["index"] == str(index)
    with pytest.raises(ValueError, match=r"record 3: the number 3 is not in .*index\.json"):
        score_file(captions, [instances], vocabulary=vocabulary, index=saved(index, named[:2]))


def test_captions_of_other_harnesses(instances: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Samples of lmms-eval, and a table of VLMEvalKit, whose index is no image id."""
    samples = [
        {
            "doc_id": place,
            "target": "['A dog.']",
            "filtered_resps": each["caption"],
            "coco_cap_chair_i": {"answer": ["dog"], "pred": ["dog"], "image_id": each["image_id"]},
        }
        for place, each in enumerate(CAPTIONS)
    ]
    report = score_file(saved(tmp_path / "samples.json", samples), [instances], vocabulary=vocabulary)
    assert (report.score.chair_i, report.score.captions) == (0.5, 3)
    assert report.notes[0] == (
        "read as: CHAIR samples of lmms-eval; answer from 'filtered_resps', "
        "joined by coco_cap_chair_i/image_id"
    )
    rows = [
        {"index": place, "answer": "['A dog.']", "prediction": each["caption"]}
        for place, each in enumerate(CAPTIONS)
    ]
    table = saved(tmp_path / "table.json", rows)
    with pytest.raises(ValueError, match="record 1: no image id, and 0 only counts; say with --index FILE"):
        score_file(table, [instances], vocabulary=vocabulary)
    index = saved(
        tmp_path / "index.json", {str(place): each["image_id"] for place, each in enumerate(CAPTIONS)}
    )
    assert score_file(table, [instances], vocabulary=vocabulary, index=index).score.chair_i == 0.5
    placed = [
        {**row, "image_path": f"{each['image_id']:012d}.jpg"}
        for row, each in zip(rows, CAPTIONS, strict=True)
    ]
    assert score_file(saved(table, placed), [instances], vocabulary=vocabulary).score.chair_i == 0.5


def test_keys_of_captions(instances: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    rows = [
        {"nr": each["image_id"], "image_id": 1, "said": each["caption"], "caption": "x"} for each in CAPTIONS
    ]
    report = score_file(
        saved(tmp_path / "captions.json", rows), [instances], vocabulary=vocabulary, keys=Keys("said", "nr")
    )
    assert (report.score.chair_i, report.score.captions) == (0.5, 3)
    assert report.notes[0] == "read as: captions; answer from 'said', joined by nr"


@pytest.mark.parametrize(
    ("text", "told"), [("word " * 61, True), ("word " * 59, False), ("word\n\n" * 61, False)]
)
def test_captions_that_a_stop_text_may_have_cut(
    text: str, told: bool, instances: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    coco = json.loads(instances.read_text())
    coco["images"] += [{"id": 1000 * place + 7} for place in range(20)]
    rows = [{"image_id": 1000 * place + 7, "caption": f"{text}."} for place in range(20)]
    captions, images = saved(tmp_path / "captions.json", rows), saved(tmp_path / "coco.json", coco)
    notes = score_file(captions, [images], vocabulary=vocabulary).notes
    assert any("no caption has a blank line" in note for note in notes) == told


def test_few_images_are_told(instances: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    coco = json.loads(instances.read_text())
    coco["images"] += [{"id": 1000 * place + 7} for place in range(500)]
    images = saved(tmp_path / "coco.json", coco)
    for count, told in ((499, True), (500, False)):
        rows = [{"image_id": 1000 * place + 7, "caption": "A dog."} for place in range(count)]
        notes = score_file(saved(tmp_path / "captions.json", rows), [images], vocabulary=vocabulary).notes
        assert any("499 images: published figures are over 500" in note for note in notes) == told


@pytest.mark.skipif(not FORMATS.exists(), reason="the public answer files are not beside the checkout")
def test_public_captions(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Captions that are cut off, once and twice; and numbers that are no image ids."""
    ids = (42, 73, 74, 133, 136, 139, 143, 164, 192, 196, 208, 241, 257, 283, 294, 328, 338, 357, 359, 360)
    coco = {**INSTANCES, "images": [*INSTANCES["images"], *({"id": id} for id in ids)]}
    images = saved(tmp_path / "coco.json", coco)
    public = FORMATS / "adaiat_captions_twice.jsonl"
    twice = tmp_path / "twice.jsonl"
    twice.write_text(public.read_text() * 2)
    for path, repeated in ((public, 0), (twice, 12)):
        report = score_file(path, [images], vocabulary=vocabulary)
        assert (report.counts["scored"], report.counts["repeated"]) == (12, repeated)
        assert any("of 12 captions end within a sentence" in note for note in report.notes)
    with pytest.raises(ValueError, match="images that the COCO files lack"):
        score_file(FORMATS / "amber_style_captions.json", [images], vocabulary=vocabulary)
