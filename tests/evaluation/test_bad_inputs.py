"""Bad inputs through the command line: one clear line, or a failure that is counted; never a traceback."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.support import jobs
from tests.support.paths import BENCHMARKS

pytestmark = pytest.mark.slow

Rows = list[dict[str, Any]]
Edit = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


@pytest.fixture(autouse=True)
def _loaded_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.load_once(loaded, monkeypatch)


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    """A data folder that may be spoilt: instances, captions, questions, answers, six pictures."""
    return shutil.copytree(world, tmp_path / "data", ignore=shutil.ignore_patterns("*_pope_*"))


def rows() -> Rows:
    """Six POPE questions about the first three pictures."""
    return [
        {
            "question_id": number,
            "image": f"{1 + number % 3:012d}.png",
            "text": f"Is there a {name} in the image?",
            "label": "yes" if number % 2 else "no",
        }
        for number, name in enumerate(("dog", "car", "cat", "bus", "cup", "chair"), 1)
    ]


def pope(content: bytes | str | Rows) -> Edit:
    """A POPE file with this content."""

    def write(folder: Path) -> None:
        path = folder / "pope" / "custom_pope_random.json"
        path.parent.mkdir()
        if isinstance(content, list):
            path.write_text("\n".join(map(json.dumps, content)))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def pope_row(**changes: Any) -> Edit:
    """A POPE file whose first row has other values; ... leaves a key out."""
    first, *others = rows()
    changed = {key: value for key, value in {**first, **changes}.items() if value is not ...}
    return pope([changed, *others])


def edited(name: str, change: Callable[[Any], None]) -> Edit:
    """A change of one of the JSON files of the folder."""

    def edit(folder: Path) -> None:
        content = jobs.read(folder / name)
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def entry(name: str, key: str, /, **changes: Any) -> Edit:
    """Other values in the first entry of a list in one of the files; ... leaves a key out."""

    def change(content: Any) -> None:
        content[key][0] = {
            field: value for field, value in {**content[key][0], **changes}.items() if value is not ...
        }

    return edited(name, change)


def renamed(categories: Rows) -> None:
    for each in categories:
        each["name"] = f"hound of hell {each['id']}"


def question(**changes: Any) -> Edit:
    return entry("questions.json", "questions", **changes)


def answer(**changes: Any) -> Edit:
    return entry("answers.json", "annotations", **changes)


def raw(name: str, content: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content) and None


def removed(name: str) -> Edit:
    def remove(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


BROKEN_FOLDERS: list[tuple[str, str, Edit, str]] = [
    # task, what is wrong, how it comes about, what is said
    ("pope", "empty file", pope(""), "custom_pope_random.json is empty; check what wrote it"),
    ("pope", "blank file", pope(" \n\t"), "is empty"),
    ("pope", "zero samples", pope("[]"), "holds no records; at least one is needed"),
    ("pope", "no records", pope("5"), "5 is no object"),
    ("pope", "not JSON", pope('{"question_id": 1,'), "not valid JSON"),
    ("pope", "cut in the middle", pope(json.dumps(rows())[:-30]), "not valid JSON"),
    ("pope", "second line broken", pope(json.dumps(rows()[0]) + "\n{"), "line 2: not valid JSON"),
    ("pope", "not UTF-8", pope(b'{"question_id": 1, "text": "caf\xe9"}'), "byte 0xe9 is not UTF-8"),
    ("pope", "UTF-16", pope(json.dumps(rows()).encode("utf-16")), "is not UTF-8"),
    ("pope", "NaN score", pope_row(score=float("nan")), "line 1: NaN is no JSON number"),
    ("pope", "infinite score", pope_row(score=float("-inf")), "-Infinity is no JSON number"),
    ("pope", "no id", pope_row(question_id=...), "no id; expected the key 'question_id'"),
    ("pope", "id of letters", pope_row(question_id="first"), 'question_id is "first"; it must be a whole'),
    ("pope", "broken id", pope_row(question_id=1.5), "the id is 1.5"),
    ("pope", "true as id", pope_row(question_id=True), "the id is true"),
    ("pope", "same id twice", pope_row(question_id=2), "line 2: question_id 2 comes twice"),
    ("pope", "no image", pope_row(image=...), "no image; expected the key 'image'"),
    ("pope", "null image", pope_row(image=None), "the image is null; it must be a text"),
    ("pope", "number as image", pope_row(image=1), "the image is 1; it must be a text"),
    ("pope", "no question", pope_row(text=...), "no question; expected the key 'text'"),
    ("pope", "blank question", pope_row(text="  "), "it must be a text"),
    ("pope", "no label", pope_row(label=...), "no label; expected the key 'label' or 'answer'"),
    ("pope", "label maybe", pope_row(label="maybe"), 'the label is "maybe"; it must be yes or no'),
    ("pope", "label true", pope_row(label=True), "the label is true; it must be yes or no"),
    (
        "pope",
        "half a character",
        pope_row(text="Is there a \ud800?"),
        "line 1: '\\ud800' is a lone surrogate",
    ),
    ("pope", "half a character in a path", pope_row(image="\ud800.png"), "is a lone surrogate"),
    ("pope", "no instances and no questions", removed("instances.json"), "pope needs"),
    ("pope", "no folder of images", removed("images"), "pope needs images, and"),
    (
        "pope",
        "too few objects",
        edited("instances.json", lambda c: c.update(annotations=[])),
        "0 of 6 images",
    ),
    ("chair", "no instances", removed("instances.json"), "chair needs instances"),
    ("chair", "no captions", removed("captions.json"), "chair needs captions"),
    ("chair", "no folder of images", removed("images"), "chair needs images"),
    ("chair", "instances are a list", raw("instances.json", b"[]"), "is no COCO file"),
    ("chair", "no list of images", raw("instances.json", b'{"annotations": []}'), "has no list 'images'"),
    ("chair", "no images", edited("instances.json", lambda c: c.update(images=[])), "lists no images"),
    ("chair", "string ids", entry("instances.json", "images", id="1"), 'the id is "1"; it must be a whole'),
    ("chair", "same image twice", entry("instances.json", "images", id=2), "the id 2 comes twice"),
    ("chair", "no file name", entry("instances.json", "images", file_name=...), "file_name is null"),
    ("chair", "unknown image", entry("instances.json", "annotations", image_id=99), "image_id is 99, which"),
    (
        "chair",
        "unknown category",
        entry("instances.json", "annotations", category_id=999),
        "category_id is 999",
    ),
    (
        "chair",
        "category without word",
        edited("instances.json", lambda c: renamed(c["categories"])),
        "no class",
    ),
    ("chair", "caption is a number", entry("captions.json", "annotations", caption=5), "the caption is 5"),
    (
        "chair",
        "captions of others",
        edited("captions.json", lambda c: c.update(annotations=[])),
        "no captions of",
    ),
    ("vqa", "no questions", removed("questions.json"), "vqa needs questions"),
    ("vqa", "no answers", removed("answers.json"), "vqa needs answers"),
    ("vqa", "questions are null", raw("questions.json", b"null"), "null is no object"),
    ("vqa", "zero questions", raw("questions.json", b'{"questions": []}'), "holds no records"),
    ("vqa", "no question id", question(question_id=...), "no id; expected the key 'question_id'"),
    ("vqa", "unanswered question", question(question_id=7), "no answers to question 7"),
    ("vqa", "same question twice", question(question_id=1001), "question_id 1001 comes twice"),
    ("vqa", "question without image", question(image_id=...), "no image id; expected the key 'image_id'"),
    ("vqa", "null image", question(image_id=None), "the image id is null"),
    ("vqa", "image of another question", question(image_id=2), "are of image 1, the question is of image 2"),
    ("vqa", "no text", question(question=None), "the question is null; it must be a text"),
    ("vqa", "NaN", question(question=float("nan")), "NaN is no JSON number"),
    ("vqa", "half a character", question(question="Wh\udfffy?"), "is a lone surrogate"),
    ("vqa", "no answers to a question", answer(answers=[]), "the answers are []; they must be a list"),
    ("vqa", "answers without text", answer(answers=[{"answer": 5}]), "is no answer; it must be a text"),
    ("vqa", "answers are null", answer(answers=None), "the answers are null"),
    (
        "vqa",
        "image that nobody lists",
        edited("instances.json", lambda c: (c["images"].pop(0), c.update(annotations=[]))),
        "asks about image 1, which",
    ),
]


@pytest.mark.parametrize(
    ("task", "what", "spoil", "message"),
    BROKEN_FOLDERS,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_data_folder_is_one_line(
    task: str, what: str, spoil: Edit, message: str, folder: Path, tmp_path: Path
) -> None:
    spoil(folder)
    assert message in jobs.refused("eval", task, "--data", folder, "--output", tmp_path / "out")
    assert jobs.records(tmp_path) == []


def test_no_picture_at_all_is_one_line_before_any_work(folder: Path, tmp_path: Path) -> None:
    for picture in (folder / "images").iterdir():
        picture.unlink()
    said = jobs.refused("eval", "pope", "--data", folder, "--output", tmp_path / "out")
    assert "pictures of pope is in" in said
    assert "give data: {images: FOLDER}" in said
    assert jobs.records(tmp_path) == []


def png(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def truncated() -> bytes:
    """The first half of a JPEG."""
    import io

    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


FIRST = "images/000000000002.png"


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def holds(content: bytes) -> Edit:
    return lambda path: path.write_bytes(content) and None


BROKEN_PICTURES: dict[str, tuple[Edit, str]] = {
    "missing": (Path.unlink, "no image file"),
    "empty": (holds(b""), "is not a readable image"),
    "text": (holds(b"<html>404</html>"), "is not a readable image"),
    "truncated JPEG": (holds(truncated()), "is not a readable image"),
    "bomb": (holds(png(40_000, 40_000)), "too many pixels"),
    "large": (holds(png(10_000, 10_000)), "too many pixels"),
    "without pixels": (holds(png(0, 5)), "is not a readable image"),
    "vector graphics": (holds(b"<svg/>"), "is not a readable image"),
    "link to itself": (linked, "no image file"),
    "folder": (is_folder, "no image file"),
}
BROKEN_QUESTIONS: dict[str, tuple[dict[str, str], str]] = {
    "image elsewhere": ({"image": "../../secret.png"}, "no image file"),
    "image of a web page": ({"image": "https://example.org/a.png"}, "no image file"),
    "zero byte in a path": ({"image": "a\0b.png"}, "no image file"),
    "placeholder": ({"text": "Is there an <image> here?"}, "image"),
    "nothing but placeholders": ({"text": "<image><image>"}, "image"),
}


def test_broken_samples_are_counted_failures(folder: Path, tmp_path: Path) -> None:
    """All in one file, beside six good ones, which are answered."""
    asked, messages = rows(), {}
    for what, (spoil, message) in BROKEN_PICTURES.items():
        path = folder / "images" / f"{what}.png"
        shutil.copy(folder / FIRST, path)
        spoil(path)
        asked.append({**asked[0], "question_id": len(asked) + 1, "image": path.name})
        messages[len(asked)] = what, message
    for what, (changes, message) in BROKEN_QUESTIONS.items():
        asked.append({**asked[0], "question_id": len(asked) + 1, **changes})
        messages[len(asked)] = what, message
    pope(asked)(folder)
    result = jobs.evaluate(tmp_path / "out", "pope", "--data", folder, exit_code=3)
    count = len(messages)
    assert "Traceback" not in result.stderr
    assert f"{count} failed" in result.stderr
    missing = [what for what, message in messages.values() if message == "no image file"]
    assert f"{len(missing)} of {3 + len(BROKEN_PICTURES) + 3} pictures of pope are missing" in result.stderr
    found = jobs.results(tmp_path / "out")
    assert found["counts"] == {
        "samples": 6 + count,
        "answered": 6,
        "failed": count,
        "unparsed": 0,
        "truncated": 0,
    }
    assert sum(found["failures"].values()) == count
    records = jobs.records(tmp_path / "out")
    errors = {record["id"]: record["error"] for record in records if record["status"] == "error"}
    for number, (what, message) in messages.items():
        [error] = [text for id, text in errors.items() if id.endswith(f"/{number}")]
        assert message in error, what
    assert len(errors) == count
    assert len((next(tmp_path.glob("out/pope/*")) / "errors.jsonl").read_text().splitlines()) == count
    assert f"{count} of {6 + count} samples failed" in (tmp_path / "out" / "report.html").read_text()


ODD_TEXTS = (
    "\u202e\u200b\U0001f600 \x00\x07",
    "</s><pad><unk>",
    "{{ 7 * 7 }} {% raw %} %s {0}",
    "USER: Hi ASSISTANT: no",
    "[/red] [bold] <script>alert(1)</script>",
    "Is there a dog " + "very " * 500 + "near?",
)
ODD_PICTURES: dict[str, Edit] = {
    "one pixel": lambda path: Image.new("L", (1, 1)).save(path),
    "four inks": lambda path: Image.new("CMYK", (9, 9)).save(path, "TIFF"),
    "see-through": lambda path: Image.new("RGBA", (9, 9)).save(path),
    "16 bits": lambda path: Image.new("I;16", (9, 9)).save(path),
    "a stripe": lambda path: Image.new("RGB", (300, 1)).save(path),
    "damaged EXIF": lambda path: damaged_exif(path),
}


def damaged_exif(path: Path) -> None:
    """A picture whose notes about itself are nonsense."""
    Image.new("RGB", (8, 8)).save(
        path, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x02\xff\xff\xff\xff"
    )


def odd_pictures(folder: Path) -> None:
    for what, save in ODD_PICTURES.items():
        save(folder / "images" / f"{what}.png")
    pope([row | {"image": f"{what}.png"} for row, what in zip(rows(), ODD_PICTURES, strict=True)])(folder)


ODD: dict[str, Edit] = {
    "labels and further keys": pope(
        [
            row | {"label": label, "score": 0.5, "box": [1, 2]}
            for row, label in zip(rows(), ("YES", " No ", "Yes", "no", "yes ", "NO"), strict=True)
        ]
    ),
    "ids are texts after a byte order mark": pope(
        b"\xef\xbb\xbf"
        + json.dumps([row | {"question_id": str(row["question_id"])} for row in rows()]).encode()
    ),
    "Windows line ends": pope("\r\n".join(map(json.dumps, rows()))),
    "questions": pope([row | {"text": text} for row, text in zip(rows(), ODD_TEXTS, strict=True)]),
    "pictures": odd_pictures,
}


@pytest.mark.parametrize("what", ODD)
def test_odd_but_good_inputs_are_answered(what: str, folder: Path, tmp_path: Path) -> None:
    ODD[what](folder)
    result = jobs.evaluate(tmp_path / "out", "pope", "--data", folder)
    assert "failed" not in result.stderr
    found = jobs.results(tmp_path / "out")
    assert (found["counts"]["answered"], found["failures"]) == (6, {})


COLUMNS = {"image": "i", "question": "q", "answer": "a"}
HUB: list[tuple[str, Rows, dict[str, Any], str]] = [
    (
        "no image",
        [{"i": None, "q": "Is it?", "a": "yes"}],
        {},
        "there is no image in column i; leave the row out",
    ),
    ("no question", [{"i": "x.png", "q": None, "a": "yes"}], {}, "the question is null"),
    ("no answer", [{"i": "x.png", "q": "Is it?", "a": None}], {}, "the label is null; it must be yes or no"),
    ("wrong answer", [{"i": "x.png", "q": "Is it?", "a": "2"}], {}, 'the label is "2"'),
    ("no such column", [{"i": "x.png", "q": "Is it?", "b": "yes"}], {}, "has no column a; its columns are"),
    (
        "same id twice",
        [{"i": "x.png", "q": "Is it?", "a": "yes", "n": 1}] * 2,
        {"columns": COLUMNS | {"id": "n"}},
        "comes twice; ids must be unique",
    ),
    ("no columns", [{"i": "x"}], {"columns": {}}, "no column for image, question, answer under a usual name"),
    ("columns are a list", [{"i": "x"}], {"columns": ["i"]}, "columns are ['i']; they must be a mapping"),
    ("unknown role", [{"i": "x"}], {"columns": COLUMNS | {"picture": "p"}}, "do not know picture"),
    ("unknown key", [{"i": "x"}], {"revision": "main"}, "data has revision; beside dataset it has"),
    ("no data set", [{"i": "x"}], {"dataset": ""}, "dataset is ''; it must be a name"),
    ("no such file", [{"i": "x"}], {"dataset": "/missing/data.json"}, "cannot load the data set"),
]


@pytest.mark.parametrize(
    ("what", "content", "changes", "message"), HUB, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_broken_data_set_is_one_line(
    what: str, content: Rows, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    data = {"dataset": str(path), "columns": COLUMNS} | changes
    config = jobs.job_file(tmp_path / "job.yaml", tasks=["pope"], data=data)
    assert message in jobs.refused("eval", "--config", config, "--output", tmp_path / "out")


def test_a_data_set_that_is_no_data(tmp_path: Path) -> None:
    for name, content in (
        ("a.jsonl", b"{"),
        ("b.parquet", b"nothing"),
        ("c.csv", b"\xff\xfe\x00"),
        ("d.txt", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
        data = {"dataset": str(tmp_path / name), "columns": COLUMNS}
        config = jobs.job_file(tmp_path / "job.yaml", tasks=["pope"], data=data)
        assert "cannot load the data set" in jobs.refused(
            "eval", "--config", config, "--output", tmp_path / "out"
        )


def test_a_data_set_for_captions(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"i": "x.png", "q": "Is it?", "a": "yes"}))
    data = {"dataset": str(path), "columns": COLUMNS}
    config = jobs.job_file(tmp_path / "job.yaml", tasks=["chair"], data=data)
    said = jobs.refused("eval", "--config", config, "--output", tmp_path / "out")
    assert "chair cannot use the data set" in said


def test_a_published_data_set_is_not_the_user_s(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"i": "x.png", "q": "Is it?", "a": "yes"}))
    data = {"dataset": str(path), "columns": COLUMNS}
    config = jobs.job_file(tmp_path / "job.yaml", tasks=["pope"], data=data, protocol="pope.llava/coco")
    said = jobs.refused("eval", "--config", config, "--output", tmp_path / "out")
    assert "the protocol is for coco, and the data set" in said


def test_a_data_set_with_a_missing_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    path = tmp_path / "rows.jsonl"
    content = [{"i": f"{name}.png", "q": "Is there a dog?", "a": "no"} for name in ("there", "missing")]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    config = jobs.job_file(
        tmp_path / "job.yaml", tasks=["pope"], data={"dataset": str(path), "columns": COLUMNS}
    )
    jobs.evaluate(tmp_path / "out", "--config", config, exit_code=3)
    found = jobs.results(tmp_path / "out")
    assert (found["counts"]["failed"], found["counts"]["answered"]) == (1, 1)


OPTIONS: list[tuple[list[str], str]] = [
    ([], f"no task to evaluate; name one or more of {', '.join(BENCHMARKS)}"),
    (["birds"], "unknown task 'birds'"),
    (["pope", "--method", "varr"], "did you mean 'var'"),
    (["pope", "--method", "var", "--method", "var"], "var is named twice"),
    (["pope", "--method", "fastv+divprune"], "one method that drops or merges tokens at a time"),
    (["pope", "--method", "carve+carve"], "names a method twice"),
    (["pope", "--method", "pyramid_drop"], "no schedule of PyramidDrop is published for 8 layers"),
    (["pope", "--method", "var", "--set", "moved=1"], "var has no parameter 'moved'"),
    (["pope", "--method", "var", "--set", "moved_fraction=2"], "it must be a number from 0 to 1"),
    (["pope", "--method", "var", "--set", "moved_fraction"], "is not KEY=VALUE"),
    (["pope", "--method", "var", "--set", "=1"], "is not KEY=VALUE"),
    (["pope", "--method", "var", "--set", "moved_fraction=["], "the value is not readable"),
    (["pope", "--method", "var", "--set", "vhr.head_scale=2"], "--set vhr.head_scale is of no method"),
    (["pope", "--method", "var", "--method", "vhr", "--set", "head_scale=2"], "write var.head_scale"),
    (
        ["pope", "--method", "greedy", "--set", "greedy.x=1"],
        "greedy has no parameters, but --set gives greedy.x",
    ),
    (["pope", "--set", "var.moved_fraction=1"], "belongs to no --method"),
    (["pope", "--model", "nonsense"], "neither an embedded model"),
    (["pope", "--model", "someone/some-model"], "check the name and the network"),
    (["pope", "--device", "toaster"], "--device toaster is not available here"),
    (["pope", "--device", "cuda:99"], "is not available here"),
    (["pope", "--dtype", "float31"], "unknown dtype"),
    (["pope", "--limit", "0"], "limit is '0'; it must be a whole number from 1 on, or a share"),
    (["pope", "--limit", "1.5"], "limit is '1.5'"),
    (["pope", "--limit", "nan"], "limit is 'nan'"),
    (["pope", "--limit", ""], "limit is ''"),
    (["pope", "--batch-size", "0"], "batch_size is '0'; it must be 1 or more, or auto"),
    (["pope", "--batch-size", "big"], "batch_size is 'big'"),
    (["pope", "--max-errors", "-1"], "max_errors is '-1'"),
    (["pope", "--seed", "many"], "--seed"),
    (["pope", "--shard", "2/2"], "--shard is '2/2'; it must be i/n"),
    (["pope", "--shard", "half"], "--shard is 'half'"),
    (["pope", "--resume", "maybe"], "resume is 'maybe'; it must be one of if_possible, always, never"),
    (["pope", "--resume", "always"], "there is no run"),
    (["pope", "--protocol", "pope.lava"], "did you mean 'pope.llava'"),
    (["pope", "--protocol", "chair.512"], "protocol chair.512 is for chair"),
    (["pope", "--protocol", "pope.llava/coco"], "the protocol is for coco, but"),
    (["pope", "--protocol", "pope.tiny+max_new_tokens=none"], "must be a whole number of 1 or more"),
    (["chair", "--protocol", "chair.512"], "takes 500 images and the instances have 6"),
    (["chair", "--protocol", "chair.opera-512"], "needs the image ids of the list opera-500"),
    (["pope", "--data", ""], "data: root is ''; it must be a path"),
    (["pope", "--data", "lmms-lab/POPE"], "a data set by name needs a job file"),
    (["pope", "--data", "{empty}"], "pope needs"),
    (["chair", "--data", "{empty}"], "chair needs instances"),
    (["vqa", "--data", "{empty}"], "vqa needs questions"),
    (["pope", "--data", "{file}"], "is a file; give a folder"),
    (["pope", "--config", "{empty}"], "no job file"),
    (["pope", "--config", "missing.yaml"], "no job file 'missing.yaml'; check the path"),
    (["pope", "--output", "{file}"], "cannot write to"),
    (["pope", "--output", "{file}/below"], "cannot write to"),
    (["pope", "--nope"], "--nope"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), OPTIONS, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_wrong_options_are_one_line(arguments: list[str], message: str, world: Path, tmp_path: Path) -> None:
    places = {"empty": tmp_path / "empty", "file": tmp_path / "file"}
    places["empty"].mkdir()
    places["file"].write_text("text")
    given = [argument.format(**places) for argument in arguments]
    for name, value in (("--data", world), ("--output", tmp_path / "out")):
        given += [] if name in given else [name, str(value)]
    assert message in jobs.refused("eval", *given)
    assert jobs.records(tmp_path) == []


JOBS: list[tuple[str, str]] = [
    ("", "is no job file"),
    ("[pope]", "is no job file"),
    ("tasks: [pope", "is no YAML"),
    ("\t", "is no YAML"),
    ("task: pope", "a job has no task; it has"),
    ("{tasks: pope, method: var}", "a job has no method"),
    ("tasks: 5", "tasks is 5"),
    ("tasks: [[pope]]", "unknown task ['pope']"),
    ("{tasks: pope, methods: 5}", "methods is 5"),
    ("{tasks: pope, methods: [var, var]}", "var is named twice"),
    ("{tasks: pope, methods: [{var: {moved_fraction: .nan}}]}", ".nan is no finite number"),
    ("{tasks: pope, methods: [{var: {}, vhr: {}}]}", "must be a name, or one name with its parameters"),
    ("{tasks: pope, limit: [5]}", "limit is [5]"),
    ("{tasks: pope, limit: .inf}", ".inf is no finite number"),
    ("{tasks: pope, limit: true}", "limit is True"),
    ("{tasks: pope, batch_size: large}", "batch_size is 'large'"),
    ("{tasks: pope, batch_size: [1, 2]}", "batch_size is [1, 2]"),
    ("{tasks: pope, seed: one}", "seed is 'one'; it must be a whole number"),
    ("{tasks: pope, model: [tiny-llava]}", "model is ['tiny-llava']"),
    ("{tasks: pope, revision: 2024-01-01}", "revision is datetime"),
    ("{tasks: pope, device: 0}", "device is 0"),
    ("{tasks: pope, dtype: 16}", "dtype is 16"),
    ("{tasks: pope, retry_errors: never}", "retry_errors is 'never'; it must be true or false"),
    ("{tasks: pope, resume: yes}", "resume is True"),
    ("{tasks: pope, protocol: {pope: pope.tiny}}", "it must be an id such as pope.llava"),
    ("{tasks: pope, data: [a, b]}", "data must be 'synthetic', a path, or a mapping"),
    ("{tasks: pope, data: {folder: x}}", "data has no 'folder'"),
    ("{tasks: pope, data: {root: [x]}}", "data: root is ['x']; it must be a path"),
    ("{tasks: pope, data: {pope: missing.json}}", "data: pope: there is no 'missing.json'"),
    ("{tasks: pope, data: {synthetic: {count: many}}}", "count of synthetic scenes is 'many'"),
    ("{tasks: pope, data: {synthetic: {count: 0}}}", "count must be at least 1, got 0"),
]


@pytest.mark.parametrize(("content", "message"), JOBS, ids=lambda v: v)
def test_wrong_job_files_are_one_line(content: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(content)
    assert message in jobs.refused("eval", "--config", config, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no job (no job.json); run vlmfix eval --output"),
        ("", "is damaged"),
        ("{}", "is damaged"),
        ('{"settings": {"tasks": "pope", "data": "/missing"}, "runs": []}', "no data folder '/missing'"),
    ],
)
def test_wrong_folders_to_report_are_one_line(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    assert message in jobs.refused("report", tmp_path)


def test_too_many_failures_are_one_line_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    strange = folder / "[red] [/x] images"
    strange.parent.mkdir()
    (folder / "images").rename(strange)
    for picture in sorted(strange.iterdir())[1:]:
        picture.unlink()
    config = jobs.job_file(
        tmp_path / "job.yaml", tasks=["chair"], data={"root": str(folder), "images": str(strange)}
    )
    result = jobs.cli("eval", "--config", config, "--output", tmp_path / "out", "--max-errors", "2")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "5 samples failed, more than the 2 that --max-errors allows" in line
    assert "[red] [/x] images" in line
    assert not (tmp_path / "out" / "metrics.json").exists()
    again = jobs.cli("report", tmp_path / "out")
    assert again.exit_code == 0
    assert jobs.results(tmp_path / "out")["counts"]["failed"] == 5


def test_a_damaged_record_is_one_line(world: Path, tmp_path: Path) -> None:
    jobs.evaluate(tmp_path / "out", "pope", "--data", world, "--limit", 3)
    [path] = tmp_path.glob("out/pope/*/records/*.jsonl")
    path.write_text("nonsense\n" + path.read_text())
    for command in (["eval", "pope", "--data", world, "--limit", 3, "--output", tmp_path / "out"],
                    ["report", tmp_path / "out"]):  # fmt: skip
        said = jobs.refused(*command)
        assert "0-of-1-000.jsonl, line 1 is damaged" in said


def test_a_damaged_manifest_is_one_line(world: Path, tmp_path: Path) -> None:
    jobs.evaluate(tmp_path / "out", "pope", "--data", world, "--limit", 3)
    [path] = tmp_path.glob("out/pope/*/manifest.json")
    path.write_text("{}")
    said = jobs.refused("eval", "pope", "--data", world, "--limit", 3, "--output", tmp_path / "out")
    assert "manifest.json cannot be used" in said
