"""POPE questions: all published forms of the files, what is wrong in them, and the builder."""

import json
import random
from collections import Counter

import pytest
from vlmfix.evals.pope.questions import build_pope, read_pope, write_pope

from tests.support.paths import OFFICIAL
from tests.support.tinycoco import name_of, pope_rows, writer

POPE = OFFICIAL / "pope"
official = pytest.mark.skipif(not POPE.exists(), reason=f"no official POPE files in {POPE}")


MISSPELT = "Is there an apple in the imange?"
"""As in the older release."""

NAMES = ("person", "car", "dog", "apple", "cat", "bus", "oven", "cup", "fork", "kite", "bird", "umbrella")


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


def world(images=60, seed=1):
    rng = random.Random(seed)
    return {f"{n:012d}.jpg": rng.sample(NAMES, rng.randint(1, 6)) for n in range(images)}


def test_lines_and_arrays(write):
    rows = pope_rows()
    lines = read_pope(write("a.json", "\n".join(json.dumps(row) for row in rows) + "\n\n"))
    assert lines == read_pope(write("b.json", rows))
    assert [each.id for each in lines] == [1, 2, 3, 4, 5, 6]
    assert [each.object for each in lines] == ["person", "car", "dog", "apple", "cat", "bus"]
    assert (lines[3].text, lines[3].label) == ("Is there an apple in the image?", "no")
    assert {each.image for each in lines} == {name_of(42)}


def test_popev2_has_other_keys_and_no_ids(write):
    row = {"image_id": 5, "image_name": "a.jpg", "target_object": "sink", "query": "Is a sink here?"}
    questions = read_pope(
        write("v2.json", [row | {"label": "No"}, row | {"label": "Yes", "image_name": "b"}])
    )
    assert [(each.id, each.image, each.label) for each in questions] == [(1, "a.jpg", "no"), (2, "b", "yes")]
    assert {each.object for each in questions} == {"sink"}


@pytest.mark.parametrize("id", [17, "17", 17.0])
@pytest.mark.parametrize("label", ["yes", "YES", " Yes\n"])
def test_ids_and_labels_are_normalised(write, id, label):
    [question] = read_pope(write("a.json", [pope_rows()[0] | {"question_id": id, "label": label}]))
    assert (question.id, question.label) == (17, "yes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, 'record 2: the label is "maybe"; it must be yes or no'),
        ({"label": None}, "the label is null"),
        ({"label": True}, "the label is true"),
        ({"question_id": 1}, "record 2: question_id 1 comes twice"),
        ({"question_id": "1"}, "question_id 1 comes twice"),
        ({"question_id": "a1"}, 'question_id is "a1"; it must be a whole number'),
        ({"question_id": True}, "the id is true"),
        ({"image": ""}, 'the image is ""; it must be a text'),
        ({"image": None}, "the image is null"),
        ({"image": 42}, "the image is 42"),
        ({"text": " "}, "the question is"),
    ],
)
def test_broken_questions_are_refused(write, change, message):
    rows = pope_rows(3)
    rows[1] |= change
    with pytest.raises(ValueError, match=message):
        read_pope(write("a.json", rows))


@pytest.mark.parametrize("key", ["question_id", "image", "text", "label"])
def test_missing_keys_are_named(write, key):
    rows = pope_rows(2)
    rows[1]["wrong"] = rows[1].pop(key)
    path = write("a.json", "\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match=f"line 2: no .*'{key}'.*found .*'wrong'"):
        read_pope(path)


def test_a_torn_line_is_located(write):
    path = write("a.json", json.dumps(pope_rows()[0]) + '\n{"question_id": 2, "ima')
    with pytest.raises(ValueError, match=r"a\.json, line 2: not valid JSON"):
        read_pope(path)


def test_contradictions_warn_and_repetitions_do_not(write):
    row = pope_rows()[0]
    read_pope(write("a.json", [row, row | {"question_id": 2}]))
    with pytest.warns(UserWarning, match="1 questions are answered both yes and no: Is there a person"):
        read_pope(write("b.json", [row, row | {"question_id": 2, "label": "no"}]))


def test_the_object_of_other_questions_is_unknown(write):
    rows = [pope_rows()[0] | {"text": "How many dogs are there?"}, pope_rows()[3] | {"text": MISSPELT}]
    assert [each.object for each in read_pope(write("a.json", rows))] == ["", "apple"]


def test_built_splits_share_images_and_positives():
    built = build_pope(world(), images=20, seed=3)
    assert list(built) == ["random", "popular", "adversarial"]
    for questions in built.values():
        assert [each.id for each in questions] == list(range(1, 121))
        assert [each.label for each in questions] == ["yes", "no"] * 60
        assert [each.image for each in questions] == [each.image for each in built["random"]]
        assert questions[::2] == built["random"][::2]
    assert len({each.image for each in built["random"]}) == 20


def test_built_positives_are_the_first_objects_and_negatives_new_and_absent():
    objects = world()
    for questions in build_pope(objects, images=20).values():
        for start in range(0, len(questions), 6):
            six = questions[start : start + 6]
            there = objects[six[0].image]
            assert [each.object for each in six[::2]] == there[:3]
            negatives = {each.object for each in six[1::2]}
            assert len(negatives) == 3
            assert not negatives & set(there)


def test_built_questions_are_the_same_for_the_same_seed_whatever_the_order():
    objects = world()
    shuffled = dict(sorted(objects.items(), key=lambda sample: sample[0][::-1]))
    assert list(shuffled) != list(objects)
    assert build_pope(shuffled, images=20, seed=5) == build_pope(objects, images=20, seed=5)
    other = build_pope(objects, images=20, seed=6)
    assert {each.image for each in other["random"]} != {
        each.image for each in build_pope(objects, images=20, seed=5)["random"]
    }


def test_ranked_negatives_by_hand():
    objects = {
        "1": ["a", "b", "c"],
        "2": ["a", "b", "d"],
        "3": ["a", "d", "e"],
        "4": ["b", "d", "f", "f"],
    }
    # frequencies: a 3, b 3, d 3, c 1, e 1, f 1
    built = build_pope(objects, images=4, per_image=1)
    order = [each.image for each in built["popular"][::2]]
    first = {name: min(order.index(i) for i in order if name in objects[i]) for name in "abd"}
    negatives = {each.image: each.object for each in built["popular"][1::2]}
    assert negatives["1"] == "d"
    assert negatives["4"] == "a"
    assert negatives["3"] == "b"
    assert set(negatives["2"]) < set("cef")
    assert len(first) == 3
    # with b come a 2, d 2 and then c, f; with a come b 2, d 2 and then c, e
    negatives = {each.image: each.object for each in built["adversarial"][1::2]}
    assert (negatives["1"], negatives["3"], negatives["4"]) == ("d", "b", "a")
    assert negatives["2"] in ("c", "e")


def test_negatives_without_company_are_drawn():
    objects = {"1": ["a", "b", "c"], "2": ["d", "e", "f"]}
    built = build_pope(objects, images=2)
    for question in built["adversarial"][1::2]:
        assert question.object not in objects[question.image]


def test_articles():
    texts = {each.object: each.text for each in build_pope(world(), images=30)["random"]}
    assert texts["apple"] == "Is there an apple in the image?"
    assert texts["car"] == "Is there a car in the image?"
    assert all("in the image?" in text for text in texts.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 0}, "images=0"),
        ({"per_image": 0}, "per_image=0"),
        ({"per_image": 4}, "min_objects=3 at least per_image"),
        ({"images": 61}, "of 60 images have at least 3 objects, 61 are asked for"),
    ],
)
def test_impossible_sets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_pope(world(), **arguments)


def test_an_image_with_all_objects_is_refused():
    with pytest.raises(ValueError, match="1 has 3 of all 3 objects"):
        build_pope({"1": ["a", "b", "c"]}, images=1)


def test_written_sets_read_the_same(tmp_path):
    built = build_pope(world(), images=10)
    paths = write_pope(built, tmp_path / "new", "custom")
    assert [path.name for path in paths] == [
        "custom_pope_random.json",
        "custom_pope_popular.json",
        "custom_pope_adversarial.json",
    ]
    assert {split: read_pope(path) for split, path in zip(built, paths, strict=True)} == built
    row = json.loads(paths[0].read_text().splitlines()[0])
    assert list(row) == ["question_id", "image", "text", "label"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)


@official
def test_the_official_files():
    splits = {
        split: read_pope(POPE / f"coco_pope_{split}.json") for split in ("random", "popular", "adversarial")
    }
    for questions in splits.values():
        assert [each.id for each in questions] == list(range(1, 3001))
        assert Counter(each.label for each in questions) == {"yes": 1500, "no": 1500}
        assert len({each.image for each in questions}) == 500
        assert all(each.object for each in questions)
        assert questions[::2] == splits["random"][::2]
    asked = {
        split: Counter(each.object for each in questions if each.label == "no")
        for split, questions in splits.items()
    }
    assert asked["popular"].most_common(4) == [
        ("car", 410),
        ("dining table", 370),
        ("chair", 363),
        ("person", 152),
    ]
    assert asked["adversarial"].most_common(3) == [("car", 288), ("dining table", 226), ("person", 146)]
