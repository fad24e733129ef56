"""Data sets of the library `datasets`: every place they come from, pictures as files, and wrong rows."""

import io

import datasets
import pytest
from PIL import Image
from vlmfix.evals.chair.task import Chair
from vlmfix.evals.pope.dataset import pope_rows
from vlmfix.evals.vqa.dataset import vqa_rows

from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.tasks.protocol_files import load_protocol

COLUMNS = {"image": "picture", "question": "text", "answer": "label"}
ROWS = {
    "text": ["Is there a cat in the image?", "Is there a dog in the image?", "Is there a cup in the image?"],
    "label": ["Yes", "no", "NO"],
    "kind": ["random", "random", "popular"],
    "number": [7, 8, 7],
}
POPE = load_protocol("pope.bare")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


def picture(level):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def data_set(**changes):
    pictures = [{"bytes": picture(0), "path": None}] * 2 + [{"bytes": picture(200), "path": None}]
    data = datasets.Dataset.from_dict({"picture": pictures} | ROWS | changes)
    return data.cast_column("picture", datasets.Image())


def saved(folder, **changes):
    data_set(**changes).save_to_disk(folder)
    return str(folder)


def samples_of(name, tmp_path, columns=COLUMNS, split="test", protocol=POPE):
    rows = vqa_rows if protocol.task == "vqa" else pope_rows
    return rows(HubData(name, split, columns), protocol, tmp_path / "pictures")


def test_a_saved_data_set(tmp_path):
    columns = COLUMNS | {"id": "number", "group": "kind"}
    data = HubData(saved(tmp_path / "saved"), "test", columns)
    samples = pope_rows(data, POPE, tmp_path / "pictures")
    assert [sample.id for sample in samples] == [
        "pope/custom/popular/7",
        "pope/custom/random/7",
        "pope/custom/random/8",
    ]
    assert [sample.target for sample in samples] == ["no", "yes", "no"]
    assert samples[1].meta == {
        "split": "random",
        "object": "cat",
        "question": "Is there a cat in the image?",
    }
    assert samples[1].image == samples[2].image
    assert samples[1].image.read_bytes() == picture(0)
    assert samples[1].image.suffix == ".jpeg"
    assert samples[1].cluster == samples[2].cluster != samples[0].cluster
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    used = data.used["data set"]
    assert (used["name"], used["split"], used["config"], used["rows"]) == (data.name, "test", None, 3)
    assert samples == pope_rows(data, POPE, tmp_path / "pictures")
    assert data.used["data set"] == used


def test_a_saved_data_set_with_splits(tmp_path):
    datasets.DatasetDict({"dev": data_set(), "test": data_set()}).save_to_disk(tmp_path / "saved")
    samples = samples_of(str(tmp_path / "saved"), tmp_path, split="dev")
    assert [sample.id for sample in samples] == [f"pope/custom/all/{number}" for number in (1, 2, 3)]
    with pytest.raises(ValueError, match="split train: there is no such split; it has dev, test"):
        samples_of(str(tmp_path / "saved"), tmp_path, split="train")


def test_a_parquet_file_and_a_folder_of_them(tmp_path):
    (tmp_path / "folder").mkdir()
    data_set().to_parquet(tmp_path / "folder/test.parquet")
    samples = samples_of(str(tmp_path / "folder/test.parquet"), tmp_path)
    assert len(samples) == 3
    assert [sample.target for sample in samples_of(str(tmp_path / "folder"), tmp_path)] == [
        each.target for each in samples
    ]


def public_pope(**changes):
    """Rows in the form of lmms-lab/POPE."""
    columns = {
        "id": ["0", "1", "2"],
        "question_id": ["1", "2", "1"],
        "question": ROWS["text"],
        "answer": ["yes", "no", "no"],
        "image_source": ["COCO_val2014_000000000042"] * 3,
        "image": [{"bytes": picture(0), "path": None}] * 3,
        "category": ["adversarial", "adversarial", "popular"],
    }
    return datasets.Dataset.from_dict(columns | changes).cast_column("image", datasets.Image())


def test_columns_of_public_data_sets_are_known(tmp_path):
    path = tmp_path / "test-00000-of-00001.parquet"
    public_pope().to_parquet(path)
    data = HubData(str(path), "test")
    samples = pope_rows(data, POPE, tmp_path / "pictures")
    assert [(sample.id, sample.target) for sample in samples] == [
        ("pope/custom/adversarial/1", "yes"),
        ("pope/custom/adversarial/2", "no"),
        ("pope/custom/popular/1", "no"),
    ]
    assert samples[0].image.read_bytes() == picture(0)
    twice = tmp_path / "twice.parquet"
    public_pope(category=["popular"] * 3).to_parquet(twice)
    with pytest.raises(
        ValueError, match="comes twice; ids must be unique in their group, so name another col"
    ):
        pope_rows(HubData(str(twice), "test"), POPE, tmp_path / "pictures")


def test_columns_that_are_not_known_must_be_named(tmp_path):
    path = tmp_path / "rows.parquet"
    data_set().to_parquet(path)
    with pytest.raises(
        ValueError, match=r"no column for image, question, answer under a usual name; .*picture"
    ):
        samples_of(str(path), tmp_path, columns={})


def test_json_with_paths_beside_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = {"picture": ["a.png", "b.png", str(tmp_path / "c.png")]} | ROWS
    datasets.Dataset.from_dict(rows).to_json(path)
    samples = samples_of(str(path), tmp_path)
    assert [sample.image for sample in samples] == [tmp_path / f"{name}.png" for name in "abc"]
    assert samples[0].cluster == "a.png"


def test_a_folder_of_pictures(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = ["file_name,text,label"]
    for number, (text, label) in enumerate(zip(ROWS["text"], ROWS["label"], strict=True)):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        lines.append(f"{number}.jpg,{text},{label}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    samples = samples_of(str(folder), tmp_path, COLUMNS | {"image": "image"}, split="train")
    assert [sample.image for sample in samples] == [folder / f"{number}.jpg" for number in range(3)]


@pytest.mark.parametrize(
    "answers",
    [
        [["dog", "cat"], ["dog", "cat"], ["dog", "cat"]],
        [[{"answer": "dog", "answer_id": 1}, {"answer": "cat", "answer_id": 2}]] * 3,
    ],
)
def test_open_questions(tmp_path, answers):
    columns = COLUMNS | {"id": "number", "group": "kind"}
    data = HubData(saved(tmp_path / "saved", label=answers, number=["a", "b", "c"]), "test", columns)
    samples = vqa_rows(data, load_protocol("textvqa.llava"), tmp_path / "pictures")
    assert [sample.id for sample in samples] == ["vqa/a", "vqa/b", "vqa/c"]
    assert samples[0].target == ["dog", "cat"]
    assert samples[0].meta["question_type"] == "random"
    assert samples[0].prompt.endswith("image?\nAnswer the question using a single word or phrase.")


def test_one_answer_is_enough_for_open_questions(tmp_path):
    samples = samples_of(saved(tmp_path / "saved"), tmp_path, protocol=load_protocol("vqa.llava"))
    assert [sample.target for sample in samples] == [["Yes"], ["no"], ["NO"]]


def test_a_broken_picture_is_kept(tmp_path):
    broken = [{"bytes": b"broken", "path": None}] * 3
    samples = samples_of(saved(tmp_path / "saved", picture=broken), tmp_path)
    assert samples[0].image.read_bytes() == b"broken"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ["yes", "maybe", "no"]}, 'split test, row 2: the label is "maybe"; it must be yes or no'),
        ({"label": [2, 0, 1]}, "row 1: the label is 2"),
        ({"text": ["a?", None, "b?"]}, "row 2: the question is null"),
        ({"number": [1, 2, None]}, "row 3: the id is null"),
        ({"number": [1, 1, 2]}, "row 2: the id of pope/custom/random/1 comes twice"),
        (
            {"picture": [{"bytes": picture(0), "path": None}] * 2 + [None]},
            "row 3: there is no image in column picture",
        ),
    ],
)
def test_wrong_rows_are_named(tmp_path, changes, message):
    columns = COLUMNS | {"id": "number", "group": "kind"}
    with pytest.raises(ValueError, match=message):
        samples_of(saved(tmp_path / "saved", **changes), tmp_path, columns)


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no column image; its columns are picture, text, label"):
        samples_of(saved(tmp_path / "saved"), tmp_path, COLUMNS | {"image": "image"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": "a", "question": "b"}, "lack answer; name the columns for image, question, answer"),
        (COLUMNS | {"label": "x"}, "do not know label"),
        (COLUMNS | {"id": None}, "the column id of somebody/something is None"),
    ],
)
def test_wrong_column_maps_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        HubData("somebody/something", "test", columns)


def test_data_sets_that_are_not_there(tmp_path):
    with pytest.raises(OSError, match="cannot load the data set nobody/nothing, split test"):
        samples_of("nobody/nothing", tmp_path)
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(ValueError, match=r"rows\.txt, split test: a file must be one of \.json"):
        samples_of(str(tmp_path / "rows.txt"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((OSError, ValueError), match="cannot load the data set") as caught:
        samples_of(str(tmp_path / "empty"), tmp_path)
    assert "\n" not in str(caught.value)


def test_no_rows(tmp_path):
    data_set().select([]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"cannot load the data set .*rows\.parquet, split test: .* no data"):
        samples_of(str(tmp_path / "rows.parquet"), tmp_path)


def test_captions_need_coco(tmp_path):
    with pytest.raises(ValueError, match="chair cannot use the data set x; give a folder of files"):
        Chair(HubData("x", "test", COLUMNS), load_protocol("chair.512")).samples(tmp_path)
