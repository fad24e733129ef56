"""Tables: CSV and TSV known by their first line, spreadsheets by their signature, and their traps."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from vlmfix.evaluation.files.answers import read_answers
from vlmfix.evaluation.files.readers import read_records

ROWS = [{"question_id": "1", "answer": "Yes, a dog"}, {"question_id": "2", "answer": 'a "big"\nno'}]


def written(folder: Path, content: str, name: str = "file.json") -> Path:
    path = folder / name
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        'question_id,answer\n1,"Yes, a dog"\n2,"a ""big""\nno"\n',
        'question_id\tanswer\n1\tYes, a dog\n2\t"a ""big""\nno"\n',
        '\ufeff"question_id","answer",\r\n\r\n1,"Yes, a dog",\r\n2,"a ""big""\nno",\r\n',
    ],
)
def test_texts_with_columns(content: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    assert read_records(path) == ROWS
    assert read_records(path)[1].where == f"{path}, line {4 if content[0] == chr(0xFEFF) else 3}"


def test_a_cell_may_hold_a_picture(tmp_path: Path) -> None:
    path = written(tmp_path, f"index\timage\tprediction\n0\t{'A' * 300_000}\tYes\n")
    assert read_records(path)[0]["prediction"] == "Yes"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question_id,answer\n1,yes,no\n", "line 2: 3 cells under 2 columns; quote texts that hold commas"),
        ("question_id,answer\n1\n", "line 2: 1 cells under 2 columns"),
        ("answer,answer\nyes,no\n", "line 1: the column answer has no name of its own"),
        ("answer,,id\nyes,no,1\n", "line 1: the column '' has no name of its own"),
        ('answer,id\n"yes,1\n2,3\n', "line 2: no row of a table"),
        ("question_id,answer\n", "holds no records"),
        ("this, that\n1,2\n", "line 1: not valid JSON"),
    ],
)
def test_tables_that_are_broken(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file.json") as caught:
        read_records(written(tmp_path, content))
    assert message in str(caught.value)


def sheet(path: Path, rows: list[list[Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra xlsx")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("another").append(["x"])
    book.save(path)
    return path


def test_spreadsheets(tmp_path: Path) -> None:
    header = ["index", "question", "prediction", "note", None]
    rows = [
        [0, "Is it?", "Yes", 1.0, None],
        [1.0, "Is it?", "=no", 0.5, None],
        [None] * 5,
        [2, "Is it?", None],
    ]
    path = sheet(tmp_path / "table.json", [header, *rows])
    assert read_records(path) == [
        {"index": "0", "question": "Is it?", "prediction": "Yes", "note": "1"},
        {"index": "1", "question": "Is it?", "prediction": "=no", "note": "0.5"},
        {"index": "2", "question": "Is it?", "prediction": "", "note": ""},
    ]
    assert read_records(path)[2].where == f"{path}, row 5"
    assert [answer.text for answer in read_answers(path)] == ["Yes", "=no", ""]


def test_a_formula_that_a_program_worked_out_is_refused(tmp_path: Path) -> None:
    path = sheet(tmp_path / "plain.xlsx", [["id", "answer"], [1, "=A2"]])
    changed = tmp_path / "worked_out.xlsx"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(changed, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(
                name,
                content.replace(b"<f>A2</f><v />", b"<f>A2</f><v>1</v>").replace(
                    b"<f>A2</f><v/>", b"<f>A2</f><v>1</v>"
                ),
            )
    assert read_records(path)[0]["answer"] == "=A2"
    with pytest.raises(ValueError, match=r"worked_out.xlsx, row 2, column 2: a formula, .*save the sheet"):
        read_records(changed)


def test_the_longest_cells_are_told(tmp_path: Path) -> None:
    path = sheet(tmp_path / "long.xlsx", [["id", "answer"], [1, "a" * 32_767], [2, "b" * 32_766]])
    with pytest.warns(UserWarning, match="1 texts have 32,767 characters, the most that a cell holds"):
        read_records(path)


def test_archives_that_are_no_spreadsheets(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl", reason="needs the extra xlsx")
    path = tmp_path / "answers.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("answers.json", "[]")
    with pytest.raises(ValueError, match="is a ZIP archive and no spreadsheet that can be read"):
        read_records(path)


def test_spreadsheets_without_openpyxl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ImportError):
        importlib.import_module("openpyxl")
    path = tmp_path / "table.xlsx"
    path.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(
        ImportError, match=r"needs the package openpyxl; install vlmfix\[xlsx\], or save .* CSV"
    ):
        read_records(path)
