"""The synthetic world: deterministic, biased where it must be, and true to itself in every file it writes."""

import json
import re

import numpy as np
import pytest
from pycocotools.coco import COCO

from vlmfix.evaluation.datasets import (
    demo_scene,
    render,
    sample_scene,
    write_coco,
)
from vlmfix.evaluation.datasets.synthetic.language import caption
from vlmfix.evaluation.datasets.synthetic.scenes import (
    CATEGORIES,
    CLUSTERS,
    COLORS,
    PAIRS,
    VARIED_SIZES,
)

OFFICIAL = {
    2: "bicycle",
    3: "car",
    10: "traffic light",
    18: "dog",
    49: "knife",
    76: "keyboard",
    90: "toothbrush",
}


def partner_rate(split):
    together = seen = 0
    for index in range(2000):
        scene = sample_scene(3, index, split=split)
        present = scene.categories()
        for a, b in PAIRS:
            if scene.cluster is not None and (a in present or b in present):
                seen += 1
                together += a in present and b in present
    return together / seen


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("scenes"), count=40, seed=5, sizes=VARIED_SIZES)


def test_a_scene_depends_only_on_seed_and_number():
    again = sample_scene(1, 7)
    for index in range(7):
        sample_scene(1, index)
    assert sample_scene(1, 7) == again
    assert np.array_equal(np.asarray(render(again)), np.asarray(render(sample_scene(1, 7))))
    assert sample_scene(1, 8) != again
    assert sample_scene(2, 7).objects != again.objects
    assert sample_scene(1, 7, split="train").objects != again.objects


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("size", VARIED_SIZES)
def test_scenes_hold_two_to_six_objects_inside_the_image(split, size):
    for index in range(150):
        scene = sample_scene(0, index, split=split, size=size)
        assert 2 <= len(scene.objects) <= 6
        assert len(scene.categories()) >= 2
        for item in scene.objects:
            x, y, width, height = item.box
            assert 0 <= x <= x + width <= size[0]
            assert 0 <= y <= y + height <= size[1]
            assert item.category in CATEGORIES
            assert item.color in COLORS
            assert 0 <= item.visibility <= 1
    assert render(scene).size == size


def test_categories_are_distinct_and_official():
    assert 24 <= len(CATEGORIES) <= 30
    assert len({category.coco_id for category in CATEGORIES.values()}) == len(CATEGORIES)
    for coco_id, name in OFFICIAL.items():
        assert CATEGORIES[name].coco_id == coco_id
    assert sorted(name for names in CLUSTERS.values() for name in names) == sorted(CATEGORIES)


def test_partners_come_together_in_training_and_often_not_in_test():
    assert partner_rate("train") > 0.8
    assert partner_rate("test") < 0.5


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        write_coco(tmp_path / "none", count=0, seed=1)
    with pytest.raises(ValueError, match="seed=-1"):
        sample_scene(-1, 0)
    with pytest.raises(ValueError, match="'dev'"):
        sample_scene(1, 0, split="dev")
    with pytest.raises(ValueError, match="32 x 32"):
        sample_scene(1, 0, size=(32, 32))


def test_a_folder_with_a_data_set_is_left_alone(data_set):
    with pytest.raises(FileExistsError, match="already holds a data set"):
        write_coco(data_set, count=1, seed=1)


def test_coco_reads_the_files(data_set):
    coco = COCO(str(data_set / "instances.json"))
    assert len(coco.imgs) == 40
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert 0 <= x <= x + width <= image["width"]
        assert 0 <= y <= y + height <= image["height"]
        assert 0 <= annotation["area"] <= width * height
        assert coco.annToMask(annotation).sum() > 0
    assert all((data_set / "images" / image["file_name"]).exists() for image in coco.imgs.values())
    assert len(COCO(str(data_set / "captions.json")).anns) == 5 * 40


def test_captions_name_only_what_is_there():
    for index in range(400):
        scene = sample_scene(9, index)
        text = caption(scene, np.random.default_rng(index)).lower()
        assert 1 <= text.count(".") <= 4
        for name, category in CATEGORIES.items():
            if re.search(rf"\b({name}|{category.plural})\b", text):
                assert name in scene.categories(), (text, name)


def test_answers_agree_with_the_scene(data_set):
    asked = {q["question_id"]: q for q in json.loads((data_set / "questions.json").read_text())["questions"]}
    answered = json.loads((data_set / "answers.json").read_text())["annotations"]
    assert {a["question_id"] for a in answered} == set(asked)
    for answer in answered:
        index = answer["image_id"] - 1
        groups = sample_scene(5, index, size=VARIED_SIZES[index % len(VARIED_SIZES)]).categories()
        text, truth = asked[answer["question_id"]]["question"], answer["multiple_choice_answer"]
        assert len(answer["answers"]) == 10
        assert text.lower().startswith(answer["question_type"])
        if answer["answer_type"] == "number":
            name = next(n for n, c in CATEGORIES.items() if f" {c.plural} " in text)
            assert int(truth) == len(groups[name])
            continue
        name = next(n for n in CATEGORIES if re.search(rf"\b{n}\b", text))
        if answer["answer_type"] == "yes/no":
            assert (truth == "yes") == (name in groups)
        else:
            assert truth == groups[name][0].color


def test_the_demo_scene_misses_a_partner():
    present = demo_scene().categories()
    assert any((a in present) != (b in present) for a, b in PAIRS)
