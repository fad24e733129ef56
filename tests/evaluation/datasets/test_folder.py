"""Data folders: what is found where, what may be given, and what is said of the rest."""

import hashlib
import json
import shutil

import pytest

from tests.support.tinycoco import (
    instances,
    name_of,
    write_root,
    writer,
)
from vlmfix.evaluation.datasets import write_coco
from vlmfix.evaluation.datasets.folder import DataFolder


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


@pytest.fixture
def coco_root(tmp_path):
    return write_root(tmp_path / "coco")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("scenes"), count=3, seed=5)


def test_a_coco_root(coco_root):
    folder = DataFolder.find(coco_root)
    assert folder.instances == coco_root / "annotations/instances_val2014.json"
    assert folder.captions == coco_root / "annotations/captions_val2014.json"
    assert folder.questions == coco_root / "vqa/v2_OpenEnded_mscoco_val2014_questions.json"
    assert folder.answers == coco_root / "vqa/v2_mscoco_val2014_annotations.json"
    assert folder.images == (coco_root / "val2014",)
    assert sorted(folder.question_files("coco")) == ["adversarial", "popular", "random"]
    assert [folder.data_set(task) for task in ("pope", "chair", "vqa")] == ["coco"] * 3
    assert not folder.is_synthetic


def test_scenes(scenes):
    folder = DataFolder.find(str(scenes))
    names = ("instances", "captions", "questions", "answers")
    assert [getattr(folder, name) for name in names] == [scenes / f"{name}.json" for name in names]
    assert folder.images == (scenes / "images",)
    assert [folder.data_set(task) for task in ("pope", "chair", "vqa")] == ["synthetic"] * 3
    assert not folder.question_files("synthetic")


def test_data_of_the_user_in_the_form_of_scenes_are_not_synthetic(tmp_path, write):
    write("instances.json", instances())
    folder = DataFolder.find(tmp_path)
    assert [folder.data_set(task) for task in ("pope", "chair", "vqa")] == ["custom"] * 3


@pytest.mark.parametrize("place", ["", "pope/", "POPE/", "annotations/", "pope/output/seem/"])
@pytest.mark.parametrize("infix", ["", "seem_"])
def test_pope_files_are_found_in_many_places(tmp_path, write, place, infix):
    for split in ("random", "popular", "adversarial"):
        write(f"{place}gqa_pope_{infix}{split}.json", [])
    folder = DataFolder.find(tmp_path)
    assert folder.data_set("pope") == "gqa"
    assert set(folder.question_files("gqa")) == {"random", "popular", "adversarial"}


def test_of_several_pope_sets_the_protocol_names_one(coco_root, write):
    for split in ("random", "popular", "adversarial"):
        write(f"coco/pope/gqa_pope_seem_{split}.json", [])
        write(f"coco/pope/aokvqa_pope_seem_{split}.json", [])
    folder = DataFolder.find(coco_root)
    assert folder.data_set("pope") == "coco"
    assert folder.data_set("pope", "gqa") == "gqa"
    shutil.rmtree(coco_root / "pope/coco")
    with pytest.raises(ValueError, match=r"POPE files of aokvqa and gqa; name one .* pope.llava/aokvqa"):
        DataFolder.find(coco_root).data_set("pope")


def test_a_protocol_for_other_data_is_refused(coco_root):
    with pytest.raises(ValueError, match=r"the protocol is for gqa, but .* has coco for pope"):
        DataFolder.find(coco_root).data_set("pope", "gqa")
    with pytest.raises(ValueError, match=r"the protocol is for synthetic, but .* has coco for vqa"):
        DataFolder.find(coco_root).data_set("vqa", "synthetic")


def test_missing_splits_are_refused_unless_one_file_is_given(coco_root):
    file = coco_root / "pope/coco/coco_pope_random.json"
    assert DataFolder.find(coco_root, pope=file).question_files("custom") == {"random": file}
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no coco POPE file for random"):
        DataFolder.find(coco_root).question_files("coco")


def test_all_parts_of_coco(tmp_path, write):
    for part in ("train2014", "val2017"):
        write(f"annotations/instances_{part}.json", instances())
        write(f"annotations/captions_{part}.json", {})
        (tmp_path / "images" / part).mkdir(parents=True)
    folder = DataFolder.find(tmp_path)
    assert folder.instances == tmp_path / "annotations/instances_val2017.json"
    assert folder.captions == tmp_path / "annotations/captions_val2017.json"
    assert folder.images[0] == tmp_path / "images/val2017"
    given = DataFolder.find(tmp_path, instances=tmp_path / "annotations/instances_train2014.json")
    assert given.captions == tmp_path / "annotations/captions_train2014.json"
    assert given.images[0] == tmp_path / "images/train2014"


def test_pictures_may_lie_in_the_root_itself(tmp_path, write):
    write("annotations/instances_minival2014.json", instances())
    write(f"{name_of(9)}", "")
    folder = DataFolder.find(tmp_path)
    assert folder.data_set("chair") == "custom"
    assert folder.image(name_of(9), "chair") == tmp_path / name_of(9)


def test_pictures_of_2017_go_by_names_of_2014(tmp_path, write):
    write("annotations/instances_val2017.json", instances())
    write("val2017/000000000042.jpg", "a picture")
    folder = DataFolder.find(tmp_path)
    for name in ("COCO_val2014_000000000042.jpg", "COCO_train2014_000000000042.jpg", "000000000042.jpg"):
        assert folder.image(name, "pope") == tmp_path / "val2017/000000000042.jpg"
    assert folder.image(name_of(74), "pope") == tmp_path / "val2017" / name_of(74)
    write(f"val2017/{name_of(42)}", "that of this very name")
    assert folder.image(name_of(42), "pope") == tmp_path / "val2017" / name_of(42)


def test_a_picture_need_not_exist(coco_root):
    (coco_root / "images").mkdir()
    (coco_root / "images" / name_of(74)).write_bytes(b"")
    folder = DataFolder.find(coco_root)
    assert folder.image(name_of(74), "chair") == coco_root / "images" / name_of(74)
    assert folder.image("none.jpg", "chair") == coco_root / "val2014/none.jpg"


def test_all_may_be_given(coco_root, write):
    found = DataFolder.find(coco_root)
    ids = write("ids.txt", "9\n")
    folder = DataFolder.find(
        images=str(coco_root / "val2014"),
        instances=found.instances,
        captions=found.captions,
        pope=coco_root / "pope",
        questions=found.questions,
        answers=found.answers,
        ids=ids,
    )
    assert (folder.root, folder.ids) == (None, ids)
    for name in ("images", "instances", "captions", "pope", "questions", "answers"):
        assert getattr(folder, name) == getattr(found, name)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        (
            "instances",
            "chair",
            r"chair needs instances, and .* none, looked for instances.json or annotations/",
        ),
        ("captions", "chair", r"give data: \{captions: PATH\}"),
        ("pope", "pope", "also in pope/, POPE/ and annotations/, or instances"),
        ("questions", "vqa", "v2_OpenEnded_mscoco"),
        ("answers", "vqa", "v2_mscoco"),
    ],
)
def test_what_is_missing_is_said_with_where_it_was_looked_for(tmp_path, name, task, message):
    with pytest.raises(FileNotFoundError, match=message):
        DataFolder.find(tmp_path).require(name, task)
    with pytest.raises(FileNotFoundError, match=f"{task} needs images, and .* val2014/"):
        DataFolder.find(tmp_path).image("a.jpg", task)


def test_without_a_root_nothing_was_looked_for(coco_root):
    folder = DataFolder.find(images=coco_root)
    with pytest.raises(FileNotFoundError, match="and the data given has none; give data"):
        folder.read_instances("chair")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "data names nothing; give a root"),
        ({"root": "nowhere"}, FileNotFoundError, "root: there is no 'nowhere'"),
        ({"root": "file"}, NotADirectoryError, "'file' is a file; give a folder"),
        ({"images": "file"}, NotADirectoryError, "images: 'file' is a file"),
        ({"instances": "folder"}, IsADirectoryError, "instances: 'folder' is a folder"),
        ({"instances": 3}, ValueError, "instances is 3; it must be a path"),
        ({"captions": ""}, ValueError, "captions is ''"),
        ({"instance": "file"}, ValueError, "data has no 'instance'; it has root, images, instances"),
        ({"pope": "folder"}, FileNotFoundError, "no file named like coco_pope_random.json"),
    ],
)
def test_wrong_paths_are_refused(tmp_path, monkeypatch, given, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=message):
        DataFolder.find(**given)


def test_what_was_read_is_recorded(coco_root):
    folder = DataFolder.find(coco_root)
    assert folder.used == {}
    read = folder.read_instances("chair")
    assert folder.read_instances("pope") is read
    content = folder.instances.read_bytes()
    assert folder.used == {
        "instances": {
            "file": str(folder.instances),
            "sha256": hashlib.sha256(content).hexdigest(),
            "rows": 5,
        }
    }
    assert read.objects[25] == ("car", "person", "dog")
    assert read.objects[133] == ()
    assert read.file_names[9] == name_of(9)


def changed(**lists):
    content = instances()
    for key, row in lists.items():
        content[key][1] = row
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[]", "is no COCO file"),
        ('{"images": []}', "no list 'annotations' .found images."),
        ('{"images": [', "line 1: not valid JSON"),
        ("{}", "found nothing"),
        (changed(images=7), "images, record 2: 7 is no object"),
        (changed(images={"file_name": "a.jpg"}), "images, record 2: the id is null"),
        (changed(images={"id": "25", "file_name": "a.jpg"}), 'the id is "25"; it must be a whole number'),
        (changed(images={"id": 9, "file_name": "a.jpg"}), "record 2: the id 9 comes twice"),
        (changed(images={"id": 25}), "file_name is null; it must be a text"),
        (changed(categories={"id": 3}), "categories, record 2: name is null"),
        (changed(annotations={"id": 2, "image_id": 10, "category_id": 1}), "image_id is 10, which the file"),
        (changed(annotations={"id": 2, "image_id": 9, "category_id": 99}), "category_id is 99"),
        (changed(annotations={"id": 2, "image_id": 9}), "annotations, record 2: category_id is null"),
        (changed(annotations={"id": 1, "image_id": 9, "category_id": 1}), "the id 1 comes twice"),
        ({"images": [], "annotations": [], "categories": []}, "lists no images"),
    ],
)
def test_broken_instances_are_refused(write, content, message):
    path = write("instances.json", content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        DataFolder.find(instances=path).read_instances("chair")
    assert str(path) in str(caught.value)


def test_pycocotools_prints_nothing(coco_root, capsys):
    DataFolder.find(coco_root).read_instances("chair")
    assert capsys.readouterr().out == ""
