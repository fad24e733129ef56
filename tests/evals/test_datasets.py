"""Samples: what every task asks on which data, image lists, and the choice of some samples."""

import random

import pytest
from vlmfix.evals.chair.dataset import chair_samples
from vlmfix.evals.pope.dataset import pope_samples
from vlmfix.evals.vqa.dataset import vqa_samples

from tests.support.paths import OFFICIAL
from tests.support.tinycoco import (
    captions,
    instances,
    name_of,
    pope_rows,
    vqa,
    write_root,
    writer,
)
from vlmfix.evaluation.datasets import write_coco
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.hashing import digest, shard
from vlmfix.evaluation.tasks.protocol_files import default_protocol, load_protocol

POPE = OFFICIAL / "pope"

SHORT = "Answer the question using a single word or phrase."


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


@pytest.fixture
def coco_root(tmp_path):
    return write_root(tmp_path / "coco")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return DataFolder.find(write_coco(tmp_path_factory.mktemp("scenes"), count=40, seed=5))


def pope_of(root):
    with pytest.warns(UserWarning, match="has 6 questions and POPE's present file 3000"):
        return pope_samples(DataFolder.find(root), load_protocol("pope.llava"))


def chair_of(root, **changes):
    return chair_samples(DataFolder.find(root), load_protocol("chair.512").with_(**changes))


def test_pope_from_files(coco_root):
    samples = {sample.id: sample for sample in pope_of(coco_root)}
    assert len(samples) == 18
    assert list(samples) == sorted(samples)
    sample = samples["pope/coco/popular/4"]
    assert sample.prompt == f"Is there an apple in the image?\n{SHORT}"
    assert (sample.target, sample.cluster, sample.image) == (
        "no",
        name_of(42),
        coco_root / "val2014" / name_of(42),
    )
    assert sample.meta == {
        "split": "popular",
        "object": "apple",
        "question": "Is there an apple in the image?",
    }


def test_pope_files_are_recorded(coco_root):
    folder = DataFolder.find(coco_root)
    with pytest.warns(UserWarning, match="not comparable"):
        pope_samples(folder, load_protocol("pope.llava/coco"))
    assert {name: used["rows"] for name, used in folder.used.items()} == {
        "pope coco adversarial": 6,
        "pope coco popular": 6,
        "pope coco random": 6,
    }


def test_one_file_of_pope(coco_root, write):
    file = write("mine.json", pope_rows(2))
    samples = pope_samples(DataFolder.find(coco_root, pope=file), load_protocol("pope.bare"))
    assert [sample.id for sample in samples] == ["pope/custom/mine/1", "pope/custom/mine/2"]


def test_pope_is_built_where_there_are_no_files(scenes, tmp_path):
    protocol = default_protocol("pope", "synthetic").on(scenes.data_set("pope"))
    samples = pope_samples(scenes, protocol, built=tmp_path / "built")
    assert protocol.id == "pope.tiny/synthetic"
    assert samples == pope_samples(scenes, protocol)
    assert {sample.meta["split"] for sample in samples} == {"random", "popular", "adversarial"}
    assert all(sample.image.is_file() for sample in samples)
    objects = scenes.read_instances("pope").objects
    for sample in samples:
        assert (sample.target == "yes") == (sample.meta["object"] in objects[int(sample.image.stem)])
        assert sample.prompt == sample.meta["question"]
    images = len({sample.cluster for sample in samples})
    assert images == sum(len(names) >= 3 for names in objects.values())
    assert scenes.used["pope builder"] == {"seed": 0, "images": images, "of images": 40}
    assert scenes.used["pope synthetic random"]["rows"] == 6 * images
    again = DataFolder.find(scenes.root, pope=tmp_path / "built")
    assert pope_samples(again, protocol) == samples
    assert pope_samples(scenes, protocol, seed=1) != samples


def test_pope_needs_files_or_instances(tmp_path):
    folder = DataFolder.find(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"pope needs question files, .* or instances to build questions from"
    ):
        pope_samples(folder, load_protocol("pope.llava"))


def test_pope_cannot_be_built_of_poor_images(tmp_path, write):
    content = instances()
    content["annotations"] = []
    write("instances.json", content)
    with pytest.raises(ValueError, match="0 of 5 images have at least 3 objects"):
        pope_samples(DataFolder.find(tmp_path), load_protocol("pope.llava"))


@pytest.mark.skipif(not POPE.exists(), reason=f"no official POPE files in {POPE}")
def test_the_official_files_give_nine_thousand_samples(tmp_path):
    folder = DataFolder.find(pope=POPE, images=tmp_path)
    samples = pope_samples(folder, load_protocol("pope.llava").on(folder.data_set("pope")))
    assert len({sample.id for sample in samples}) == 9000
    assert len({sample.cluster for sample in samples}) == 500
    first = next(sample for sample in samples if sample.id == "pope/coco/random/1")
    assert first.prompt == f"Is there a snowboard in the image?\n{SHORT}"
    assert first.image == tmp_path / "COCO_val2014_000000310196.jpg"


def test_chair(coco_root):
    samples = chair_of(coco_root, subset="")
    assert [sample.id for sample in samples] == [
        f"chair/{image_id:012d}" for image_id in (9, 25, 42, 74, 133)
    ]
    assert samples[1].target == ["car", "dog", "person"]
    assert samples[4].target == []
    assert samples[1].image == coco_root / "val2014" / name_of(25)
    assert (samples[1].cluster, samples[1].meta) == ("25", {"image_id": 25})
    assert {sample.prompt for sample in samples} == {"Please describe this image in detail."}
    assert not samples[3].image.exists()


def test_chair_checks_what_the_scorer_will_read(coco_root, write):
    folder = DataFolder.find(coco_root, synonyms=write("synonyms.txt", "dog, puppy\ncat\n"))
    chair_samples(folder, load_protocol("chair.tiny"))
    assert {name: used["rows"] for name, used in folder.used.items()} == {
        "instances": 5,
        "captions": 5,
        "synonyms": 2,
    }
    folder.used.clear()
    chair_samples(folder, load_protocol("chair.tiny"))
    assert set(folder.used) == {"instances", "captions", "synonyms"}
    folder.captions.unlink()
    with pytest.raises(FileNotFoundError, match="chair needs captions"):
        chair_of(coco_root, subset="")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 10}, r"no captions of 1 of 5 images \(25\); give the captions of the same part"),
        ({"image_id": "25"}, 'annotations, record 2: image_id is "25"'),
        ({"caption": None}, "record 2: the caption is null"),
        ({"id": 1}, "the id 1 comes twice"),
    ],
)
def test_broken_captions_are_refused(coco_root, write, change, message):
    content = captions()
    content["annotations"][1] |= change
    with pytest.raises(ValueError, match=message):
        chair_samples(
            DataFolder.find(coco_root, captions=write("c.json", content)), load_protocol("chair.tiny")
        )


def test_the_rule_of_the_list(coco_root):
    folder = DataFolder.find(coco_root)
    samples = chair_samples(folder, load_protocol("chair.512").with_(subset_size=3))
    chosen = sorted(random.Random(0).sample([9, 25, 42, 74, 133], 3))
    assert [sample.meta["image_id"] for sample in samples] == chosen
    assert folder.used["list vlmfix-500"] == {
        "sha256": digest(chosen),
        "rows": 3,
        "of images": 5,
        "of all val2014": False,
    }
    with pytest.raises(ValueError, match=r"takes 500 images and the instances have 5; set .* subset_size"):
        chair_of(coco_root)


@pytest.mark.parametrize("content", ["133\n9\n\n", "[133, 9]", '["9", "133"]', "\ufeff 9\r\n133"])
def test_a_list_of_the_user(coco_root, write, content):
    folder = DataFolder.find(coco_root, ids=write("ids", content))
    samples = chair_samples(folder, load_protocol("chair.opera-512").with_(subset_size=2))
    assert [sample.meta["image_id"] for sample in samples] == [9, 133]
    assert folder.used["ids"]["rows"] == 2
    assert folder.used["list opera-500"]["sha256"] == digest([9, 133])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("9\nx\n", 'line 2: "x" is no image id'),
        ("9\n-1", 'line 2: "-1" is no image id'),
        ("[9, true]", "entry 2: true is no image id"),
        ("[9, 9]", "entry 2: the image id 9 comes twice"),
        ("9\n25\n42", "holds 3 image ids, and the list opera-500 of .* has 2"),
        ("9\n10", r"1 of 2 image ids of .* are not in .* \(10\); give the instances"),
        ("\n", "is empty"),
        ("[]", "holds no image ids"),
        ("[9, ", "line 1: not valid JSON"),
    ],
)
def test_broken_lists_are_refused(coco_root, write, content, message):
    folder = DataFolder.find(coco_root, ids=write("ids", content))
    with pytest.raises(ValueError, match=message):
        chair_samples(folder, load_protocol("chair.opera-512").with_(subset_size=2))


def test_a_list_must_be_given_where_it_is_named_and_only_there(coco_root, write):
    with pytest.raises(FileNotFoundError, match=r"chair.opera-512 needs the image ids of the list opera-500"):
        chair_samples(DataFolder.find(coco_root), load_protocol("chair.opera-512"))
    folder = DataFolder.find(coco_root, ids=write("ids", "9"))
    for name, taken in (("chair.512", "the list vlmfix-500"), ("chair.tiny", "all images")):
        with pytest.raises(ValueError, match=f"{name} takes {taken}"):
            chair_samples(folder, load_protocol(name))


def test_vqa_on_coco_needs_no_instances(coco_root):
    (coco_root / "annotations/instances_val2014.json").unlink()
    folder = DataFolder.find(coco_root)
    samples = vqa_samples(folder, load_protocol("vqa.llava").on(folder.data_set("vqa")))
    assert [sample.id for sample in samples] == ["vqa/42000", "vqa/42001", "vqa/9000", "vqa/9001"]
    sample = samples[0]
    assert (sample.prompt, sample.target) == (f"What is it?\n{SHORT}", ["dog"] * 10)
    assert (sample.cluster, sample.image) == ("42", coco_root / "val2014" / name_of(42))
    assert sample.meta == {
        "image_id": 42,
        "question": "What is it?",
        "question_type": "what is",
        "answer_type": "other",
    }
    assert {name: used["rows"] for name, used in folder.used.items()} == {"questions": 4, "answers": 4}


def test_vqa_on_scenes(scenes):
    samples = vqa_samples(scenes, default_protocol("vqa", "synthetic"))
    assert len(samples) > 200
    assert all(sample.image.is_file() and len(sample.target) == 10 for sample in samples)
    assert {sample.meta["answer_type"] for sample in samples} == {"yes/no", "number", "other"}


def questions_and_answers(question=None, answer=None):
    asked, answered = vqa()
    asked["questions"][1] |= question or {}
    answered["annotations"][1] |= answer or {}
    return asked, answered


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": {"question_id": 42000}}, "record 2: question_id 42000 comes twice"),
        ({"answer": {"question_id": 42000}}, "record 2: question_id 42000 comes twice"),
        ({"answer": {"question_id": 7}}, "record 2: no answers to question 42001, nor to 0 others of 4"),
        (
            {"answer": {"image_id": 9}},
            "the answers to question 42001 are of image 9, the question is of image 42",
        ),
        ({"question": {"question": ""}}, 'the question is ""'),
        ({"question": {"image_id": None}}, "the image id is null"),
        (
            {"question": {"image_id": 10}, "answer": {"image_id": 10}},
            "asks about image 10, which .* not list",
        ),
        ({"answer": {"answers": []}}, "they must be a list of at least one"),
        ({"answer": {"answers": [{"answer": 4}]}}, "is no answer; it must be a text"),
    ],
)
def test_broken_vqa_files_are_refused(coco_root, write, changes, message):
    asked, answered = questions_and_answers(**changes)
    given = {"questions": write("q.json", asked), "answers": write("a.json", answered)}
    with pytest.raises(ValueError, match=message):
        vqa_samples(DataFolder.find(coco_root, **given), load_protocol("vqa.llava"))


def test_vqa_ids_may_be_text_and_answers_may_be_more(coco_root, write):
    asked, answered = questions_and_answers({"question_id": "42001", "image_id": "42"})
    asked["questions"] = asked["questions"][:2]
    given = {"questions": write("q.json", asked), "answers": write("a.json", answered)}
    folder = DataFolder.find(coco_root, **given)
    assert folder.data_set("vqa") == "custom"
    assert [sample.id for sample in vqa_samples(folder, load_protocol("vqa.llava"))] == [
        "vqa/42000",
        "vqa/42001",
    ]


def test_shards():
    assert shard("pope/coco/random/1", 4) == 1
    assert shard("pope/coco/random/2", 4) == 0
    assert shard("chair/000000000042", 4) == 0
