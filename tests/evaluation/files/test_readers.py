"""Reading files: every form in use, and errors that name file, place and remedy."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from vlmfix.evaluation.files.readers import (
    Record,
    field_of,
    id_of,
    image_number,
    read_json,
    read_records,
    read_text,
    sha256_of,
    text_of,
)


def written(folder: Path, content: str | bytes, name: str = "file.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1}, {"a": 2}]',
        '{"a": 1}\n{"a": 2}\n',
        '{"a": 1}\r\n\r\n{"a": 2}',
        '{"a": 1}{"a": 2}',
        '{\n  "a": 1\n}\n{\n  "a": 2\n}\n',
        '\ufeff[{"a": 1}, {"a": 2}]',
        '{"info": {}, "annotations": [{"a": 1}, {"a": 2}]}',
        '{"captions": [{"a": 1}, {"a": 2}]}',
    ],
)
@pytest.mark.parametrize("name", ["file.json", "file.jsonl", "file"])
def test_records_in_every_form(content: str, name: str, tmp_path: Path) -> None:
    assert read_records(written(tmp_path, content, name)) == [{"a": 1}, {"a": 2}]


def test_a_single_line_is_a_record(tmp_path: Path) -> None:
    assert read_records(written(tmp_path, '{"a": 1}\n')) == [{"a": 1}]


def test_records_know_their_place(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": 1}\n\n{"a": 2}')
    assert [record.where for record in read_records(path)] == [f"{path}, line 1", f"{path}, line 3"]
    path = written(tmp_path, '[{"a": 1}, {"a": 2}]')
    assert [record.where for record in read_records(path)] == [f"{path}, record 1", f"{path}, record 2"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"1": "Yes", "2": null}', [{"id": "1", "answer": "Yes"}, {"id": "2", "answer": None}]),
        (b'{"COCO_val2014_000000000042.jpg": "A"}', [{"id": "COCO_val2014_000000000042.jpg", "answer": "A"}]),
        (b'{"question_id": "1", "answer": "Yes"}', [{"question_id": "1", "answer": "Yes"}]),
        (b'{"overall": {}, "imgToEval": {"42": {"caption": "A"}}}', [{"image_id": "42", "caption": "A"}]),
        (b'{"imgToEval": {"42": {"image_id": 42, "caption": "A"}}}', [{"image_id": 42, "caption": "A"}]),
        (gzip.compress(b'{"id": 1}\n{"id": 2}', mtime=0), [{"id": 1}, {"id": 2}]),
    ],
)
def test_objects_that_hold_records_and_compressed_files(
    content: bytes, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert read_records(written(tmp_path, content)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"overall": {}, "imgToEval": {}}', "imgToEval is empty, so there are no captions"),
        (b'{"imgToEval": {"42": {"image_id": 43, "caption": "A"}}}', 'imgToEval "42": its image_id is 43'),
        (b"\x1f\x8b and nothing", "is compressed and cannot be read"),
        (gzip.compress(b'{"id": 1}', mtime=0)[:-9], "is compressed and cannot be read"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b'{"a": "caf\xe9"}', "line 1: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b'{"a": 1}\n{"a": "\xff"}', "line 2: byte 0xff is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
        (b'{"a": 1}\n{"a": 2\n{"a": 3}\n', "line 2: not valid JSON"),
        (b'{"a": 1}\n{"a": 2},\n{"a": 3}\n', "line 2: not valid JSON"),
        (b'{"a": 1}\nnothing\n{"a": 3}\n{"a": 4}\n', "line 2: not valid JSON"),
        (b'[{"a": 1},\n{"a": 2]', "line 2: not valid JSON"),
        (b"a,b\n1,2\n", "line 1: not valid JSON"),
        (b'{"a": NaN}', "line 1: NaN is no JSON number; write null"),
        (b'{"a": 1}\n{"a": -Infinity}', "line 2: -Infinity is no JSON number"),
        (b'[{"a": "NaN"},\n{"a": NaN}]', "line 2: NaN is no JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "line 1: Exceeds the limit"),
        (b"[]", "holds no records"),
        (b'{"annotations": []}', "holds no records"),
        (b'["yes", "no"]', 'record 1: "yes" is no object'),
        (b'[{"a": 1}, 2]', "record 2: 2 is no object"),
        (b"3", "line 1: 3 is no object"),
        (b'[{"a": 1}]\n[{"a": 2}]', "line 1: [{"),
    ],
)
def test_errors_say_where_and_why(content: bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=r"file.json") as caught:
        read_records(path)
    assert message in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing.json; check the path"):
        read_json(tmp_path / "nothing.json")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        read_records(tmp_path)


def test_pipes_are_refused_before_they_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or device; save its content as a file"):
        read_records(tmp_path / "pipe")


def test_one_value_without_what_is_not_needed(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": [{"b": 1, "c": [1, 2]}], "c": 3}')
    assert read_json(path) == {"a": [{"b": 1, "c": [1, 2]}], "c": 3}
    assert read_json(path, drop=("c",)) == {"a": [{"b": 1}]}
    with pytest.raises(ValueError, match="line 2: a second JSON value"):
        read_json(written(tmp_path, "{}\n{}"))


def test_text_and_hash(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffwords\n")
    assert read_text(path) == "words\n"
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_either_key() -> None:
    assert field_of(Record({"text": 1, "answer": 2}, "here"), ("answer", "text"), "answer") == 2
    assert field_of(Record({"text": 1}, "here"), ("answer", "text"), "answer") == 1
    with pytest.raises(
        ValueError, match="here: no answer; expected the key 'answer' or 'text', found 'image'"
    ):
        field_of(Record({"image": 1}, "here"), ("answer", "text"), "answer")


def test_texts_may_be_null_and_nothing_else() -> None:
    assert text_of(Record({"a": "x"}, "here"), ("a",), "answer") == "x"
    assert text_of(Record({"a": None}, "here"), ("a",), "answer") is None
    assert text_of(Record({"a": ["x"]}, "here"), ("a",), "answer") == "x"
    for value in (1, True, ["x", "y"], [1], {"x": 1}):
        with pytest.raises(ValueError, match=r"here: the answer is .*; it must be a text"):
            text_of(Record({"a": value}, "here"), ("a",), "answer")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), ("7", 7), (" 007 ", 7), (7.0, 7), ("7.0", 7), ("pope/7", "pope/7"), ("7.5", "7.5")],
)
def test_ids(value: object, expected: int | str) -> None:
    assert id_of(Record({"id": value}, "here"), ("id",)) == expected


@pytest.mark.parametrize("value", [None, True, 7.5, float("inf"), "", [7], {"id": 7}])
def test_what_is_no_id(value: object) -> None:
    with pytest.raises(ValueError, match=r"here: the id is .*; it must be a whole number or a text"):
        id_of(Record({"id": value}, "here"), ("id",))


@pytest.mark.parametrize(
    "value",
    [
        391895,
        "391895",
        "391895.0",
        "000000391895",
        "COCO_val2014_000000391895",
        "COCO_val2014_000000391895.jpg",
        "val2014/000000391895.jpg",
        "C:\\coco\\000000391895.png",
    ],
)
def test_image_numbers(value: object) -> None:
    assert image_number(Record({"image": value}, "here"), ("image_id", "image")) == 391895


@pytest.mark.parametrize(
    "value", [None, False, 0.5, "", "dog.jpg", "dog1.jpg", "000000391895_2.jpg", [391895]]
)
def test_what_is_no_image(value: object) -> None:
    with pytest.raises(ValueError, match="here: the image id is"):
        image_number(Record({"image": value}, "here"), ("image",))
