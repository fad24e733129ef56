"""Tables as records: CSV, TSV and the first sheet of a spreadsheet, each row an object of texts."""

from __future__ import annotations

import csv
import importlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

COLUMNS = {"id", "index", "question_id", "image", "image_id", "image_path", "question", "label"}
COLUMNS |= {"answer", "prediction", "response", "output", "caption", "text", "category"}
"""Names of columns by which a text is known to be a table; one of them is enough."""

_ZIP = b"PK\x03\x04"
_LONGEST_CELL = 32_767
"""Characters that a cell of a spreadsheet holds; what is longer was cut when it was written."""

Row = tuple[str, dict[str, str]]
"""The place of a row in words, and its cells by column."""


def is_spreadsheet(path: str | Path) -> bool:
    """Whether a file begins as spreadsheets do, which are ZIP archives."""
    file = Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(len(_ZIP)) == _ZIP


def read_spreadsheet(path: str | Path) -> list[Row]:
    """The rows of the first sheet of an XLSX file under its header; an empty cell is an empty text.

    An answer that begins with "=" is stored as a formula and read as it was written. Warns of cells that are
    as long as a cell can be.

    Raises:
        ImportError: the package openpyxl is missing.
        ValueError: it is no spreadsheet, a column has no name or that of another one, or a cell is a formula
            that a program worked out.
    """
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError as error:
        raise ImportError(
            f"{path} is a spreadsheet, which needs the package openpyxl; install vlmfix[xlsx], or save the "
            "sheet as CSV"
        ) from error
    cells = _sheet(openpyxl, path)
    formulas = [
        (number, column)
        for number, row in enumerate(cells)
        for column, cell in enumerate(row)
        if cell.data_type == "f"
    ]
    if formulas:
        worked_out = _sheet(openpyxl, path, data_only=True)
        for number, column in formulas:
            if worked_out[number][column].value not in (None, 0):  # the writers of tables leave one of these
                raise ValueError(
                    f"{path}, row {number + 1}, column {column + 1}: a formula, whose text a program may "
                    "have changed; save the sheet without formulas, or as CSV"
                )
    width = max(map(len, cells), default=0)
    lines = [[_text(cell.value) for cell in row] + [""] * (width - len(row)) for row in cells]
    rows = list(_rows((f"{path}, row {number}", line) for number, line in enumerate(lines, 1) if any(line)))
    cut = sum(len(cell) >= _LONGEST_CELL for _, row in rows for cell in row.values())
    if cut:
        warnings.warn(
            f"{path}: {cut} texts have {_LONGEST_CELL:,} characters, the most that a cell holds, and may be "
            "cut",
            stacklevel=2,
        )
    return rows


def read_table(path: str | Path, text: str) -> list[Row] | None:
    """The rows of a text with commas or tabs under its header; None if its first line is no such header.

    Raises:
        ValueError: a row has more or fewer cells than the header, a column has no name or that of another
            one, or quotes are left open.
    """
    header = text.lstrip().partition("\n")[0]
    mark = "\t" if "\t" in header else ","
    names = [name.strip().strip('"') for name in header.split(mark)]
    if len(names) < 2 or header[0] in "{[" or COLUMNS.isdisjoint(names):
        return None
    usual = csv.field_size_limit(sys.maxsize)  # tables of questions hold whole pictures
    try:
        return list(_rows(_lines(path, text, mark)))
    finally:
        csv.field_size_limit(usual)


def _lines(path: str | Path, text: str, mark: str) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, each with its place."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where}: no row of a table ({error}); quote its texts as CSV wants") from None
        if row is None:
            return
        if row:
            yield where, row


def _rows(lines: Iterable[tuple[str, list[str]]]) -> Iterator[Row]:
    """The cells of each line by the names in the first one."""
    names: list[str] | None = None
    for where, cells in lines:
        if names is None:
            names = [cell.strip() for cell in cells]
            while names and not names[-1]:
                names.pop()
            odd = next((name or "''" for name in names if not name or names.count(name) > 1), None)
            if odd:
                raise ValueError(f"{where}: the column {odd} has no name of its own; name each column once")
        elif len(cells) < len(names) or any(cells[len(names) :]):
            raise ValueError(
                f"{where}: {len(cells)} cells under {len(names)} columns; quote texts that hold commas, tabs "
                "or line breaks"
            )
        else:
            yield where, dict(zip(names, cells, strict=False))


def _sheet(openpyxl: Any, path: str | Path, **options: bool) -> list[Sequence[Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles, which are no matter
            book = openpyxl.load_workbook(io.BytesIO(Path(path).read_bytes()), read_only=True, **options)
            return list(book.worksheets[0].iter_rows())
    except Exception as error:  # of many kinds, for files that only the user can fix
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is a ZIP archive and no spreadsheet that can be read ({reason}); unpack it, or save the "
            "sheet as CSV"
        ) from error


def _text(value: Any) -> str:
    """What a cell shows; numbers come as 1.0 where 1 was written."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
