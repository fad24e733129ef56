"""Reading what others wrote: JSON, JSON Lines, concatenated objects, tables; errors say where and why."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.tables import is_spreadsheet, read_spreadsheet, read_table

LISTS = ("annotations", "questions", "results", "data", "captions", "sentences", "answers", "logs")
"""Under which of its keys an object may hold the records of a file."""

_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\r\n]*")
_NUMBERED = re.compile(r"(?:.*[/\\])?(?:\d+|.*(?<!\d)\d{12})(?:\.(?:[A-Za-z]+|0))?")


class Record(dict[str, Any]):
    """One object of a file; `where` is its place in words, such as "answers.jsonl, line 3"."""

    def __init__(self, content: dict[str, Any], where: str) -> None:
        super().__init__(content)
        self.where = where


def read_json(path: str | Path, *, drop: Collection[str] = ()) -> Any:
    """The one JSON value of a file.

    Args:
        path: UTF-8 file, with or without byte order mark.
        drop: keys that are left out of every object while reading, to save memory.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        ValueError: if it is empty, not UTF-8, not JSON (NaN is not), or holds several values.
    """
    values = _values(path, read_text(path), drop)
    if len(values) > 1:
        raise ValueError(f"{path}, line {values[1][0]}: a second JSON value; the file must hold one only")
    return values[0][1]


def read_records(path: str | Path, *, lists: Collection[str] = LISTS) -> list[Record]:
    """The objects of a JSON array, of JSON Lines, of objects one after the other, or of a list in an object;
    or the rows of a table as CSV, TSV or XLSX.

    One object from ids, or names of images, to texts gives an `id` and an `answer` for each; that of the
    official CHAIR code (`imgToEval`) the values of this key; objects in objects in an object, as RePOPE's
    code writes its splits, the innermost. The extension of the file does not matter.

    Args:
        path: UTF-8 file, with or without byte order mark, or a spreadsheet.
        lists: keys under which a single object may hold the list; the first one present counts.

    Returns:
        The objects, each of which knows its place in the file; at least one.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        ImportError: if it is a spreadsheet, and the package openpyxl is missing.
        ValueError: as for `read_json`, and if something is no object or there are none.
    """
    places: list[tuple[str, Any]]
    if is_spreadsheet(path):
        places = [*read_spreadsheet(path)]
    else:
        text = read_text(path)
        rows = read_table(path, text)
        places = _json_records(path, text, lists) if rows is None else [*rows]
    for where, value in places:
        if not isinstance(value, dict):
            raise ValueError(
                f"{where}: {shown(value)} is no object; each record must be one, with named fields"
            )
    if not places:
        raise ValueError(f"{path} holds no records; at least one is needed")
    return [Record(value, where) for where, value in places]


def _json_records(path: str | Path, text: str, lists: Collection[str]) -> list[tuple[str, Any]]:
    """What may be the records of a JSON file, each with its place."""
    values = _values(path, text, ())
    if len(values) == 1:
        only = values[0][1]
        if isinstance(only, dict):
            only = _list_in(only, lists, path)
        if isinstance(only, list):
            return [(f"{path}, record {number}", value) for number, value in enumerate(only, 1)]
    return [(f"{path}, line {line}", value) for line, value in values]


def _list_in(content: dict[str, Any], lists: Collection[str], path: str | Path) -> Any:
    """The records that an object holds in place of being one."""
    found = next((content[key] for key in lists if isinstance(content.get(key), list)), None)
    if found is not None:
        return found
    rated = content.get("imgToEval")
    if isinstance(rated, dict):
        return _rated(rated, path)
    inner = [each for each in content.values() if isinstance(each, dict) and each]
    texts = content and all(isinstance(value, str | None) for value in content.values())
    if texts and all(re.fullmatch(_NUMBERED, key) for key in content):
        return [{"id": key, "answer": value} for key, value in content.items()]
    records = [record for each in inner for record in each.values()]
    nested = records and len(inner) == len(content) and all(isinstance(record, dict) for record in records)
    return records if nested else content


def _rated(captions: dict[str, Any], path: str | Path) -> list[Any]:
    """The captions of the official CHAIR code by image id, which stands in each of them again."""
    if not captions:
        raise ValueError(f"{path}: imgToEval is empty, so there are no captions; check what wrote it")
    found = []
    for key, each in captions.items():
        if isinstance(each, dict):
            each = {"image_id": key, **each}
            where = f"{path}, imgToEval {shown(key)}"
            own = image_number(Record(each, where), ("image_id",))
            if own != image_number(Record({"key": key}, where), ("key",)):
                raise ValueError(f"{where}: its image_id is {own}; correct one of the two")
        found.append(each)
    return found


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, compressed by gzip or not, without its byte order mark.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        ValueError: if it is empty, not UTF-8, or a pipe.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; name a file in it")
    if not file.exists():
        raise FileNotFoundError(f"no file {file}; check the path")
    if not file.is_file():  # it could be read once only, and its hash is needed, too
        raise ValueError(f"{file} is a pipe or device; save its content as a file")
    content = file.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is compressed and cannot be read ({error}); save it again") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ValueError(
            f"{file}, line {line}: byte {byte:#04x} is not UTF-8; save the file as UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{file} is empty; check what wrote it")
    return text


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def field_of(record: Record, names: Sequence[str], what: str) -> Any:
    """The value under the first of `names` that the record has.

    Args:
        record: from `read_records`.
        names: the keys in use for this field, the most telling one first.
        what: the field in words, for the error.

    Raises:
        ValueError: if the record has none of the keys.
    """
    for name in names:
        if name in record:
            return record[name]
    keys = ", ".join(map(repr, record)) or "none"
    raise ValueError(f"{record.where}: no {what}; expected the key {_either(names)}, found {keys}")


def text_of(record: Record, names: Sequence[str], what: str) -> str | None:
    """The text under the first of `names` that the record has; None for null. A list of one text is that.

    Raises:
        ValueError: if the record has none of the keys, or the value is neither text nor null.
    """
    value = field_of(record, names, what)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{record.where}: the {what} is {shown(value)}; it must be a text")
    return value


def id_of(record: Record, names: Sequence[str], what: str = "id") -> int | str:
    """The id under the first of `names` that the record has; numbers may be written as text.

    Raises:
        ValueError: if the record has none of the keys, or the value is no id.
    """
    value = field_of(record, names, what)
    if isinstance(value, str) and value.strip():
        number = re.fullmatch(r"\s*(\d{1,18})(?:\.0)?\s*", value, re.ASCII)  # 7.0 in a spreadsheet
        return int(number[1]) if number else value
    return _whole(value, f"{record.where}: the {what}", "a whole number or a text")


def image_number(record: Record, names: Sequence[str]) -> int:
    """The COCO id of the record's image: a number, or a name that ends in one.

    `391895`, `"391895"`, `"COCO_val2014_000000391895.jpg"` and `"val2014/000000391895.jpg"` are the same.

    Raises:
        ValueError: if the record has none of the keys, or the value is neither of these.
    """
    value = field_of(record, names, "image id")
    if isinstance(value, str) and re.fullmatch(_NUMBERED, value.strip()):
        return int(re.findall(r"\d+", re.sub(r"\.(?:[A-Za-z]+|0)\s*$", "", value))[-1])
    return _whole(
        value,
        f"{record.where}: the image id",
        "a number or a file name that ends in its twelve digits, such as COCO_val2014_000000391895.jpg",
    )


def examples(values: Iterable[object], limit: int = 3) -> str:
    """The first few values for a message: `1, 2, 3, ...`."""
    listed = list(values)
    return ", ".join(map(str, listed[:limit])) + (", ..." if len(listed) > limit else "")


def shown(value: object) -> str:
    """A value of a file for a message, in at most about forty characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _whole(value: Any, subject: str, allowed: str) -> int:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{subject} is {shown(value)}; it must be {allowed}")


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _values(path: str | Path, text: str, drop: Collection[str]) -> list[tuple[int, Any]]:
    """All JSON values of a file with the lines on which they start; at least one."""
    decoder = json.JSONDecoder(object_pairs_hook=_object(drop), parse_constant=_refuse)
    values: list[tuple[int, Any]] = []
    line, counted, position = 1, 0, _after_blank(text, 0)
    try:
        while position < len(text):
            line += text.count("\n", counted, position)
            counted = position
            value, end = decoder.raw_decode(text, position)
            values.append((line, value))
            position = _after_blank(text, end)
    except (ValueError, RecursionError) as error:
        raise _located(path, text, decoder, error) from None
    if _SURROGATE.search(text):
        for line, value in values:
            _refuse_surrogates(f"{path}, line {line}", value)
    return values


def _refuse_surrogates(where: str, value: Any) -> None:
    """Refuse half a character, which an escape can write and no file or tokenizer takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{where}: {half!r} is a lone surrogate, which is no text; write it anew") from None


def _after_blank(text: str, position: int) -> int:
    blank = _BLANK.match(text, position)
    return blank.end() if blank else position


def _object(drop: Collection[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """What makes an object of its fields, without some of them; refuses a key that comes twice."""

    def hook(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(fields)
        if len(content) < len(fields):
            keys = [key for key, _ in fields]
            twice = next(key for key in content if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} comes twice in an object; keep one")
        for key in drop:
            content.pop(key, None)
        return content

    return hook


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number; write null or leave the field out")


def _located(path: str | Path, text: str, decoder: json.JSONDecoder, error: Exception) -> ValueError:
    """The error with its line: of JSON Lines the first broken line, not where the decoder lost its way."""
    lines = text.splitlines()
    written = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if 2 * sum(line.lstrip().startswith("{") for _, line in written) > len(written):
        for number, line in written:
            try:
                decoder.decode(line)
            except (ValueError, RecursionError) as reason:
                return ValueError(f"{path}, line {number}: {_reason(reason)}")
    if isinstance(error, json.JSONDecodeError):
        return ValueError(f"{path}, line {error.lineno}: {_reason(error)}")
    constant = next((found for found in _CONSTANT.finditer(text) if found[1]), None)
    if constant is not None:
        number = text.count("\n", 0, constant.start()) + 1
        return ValueError(f"{path}, line {number}: {_reason(error)}")
    return ValueError(f"{path}: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        what = error.msg.lower().removesuffix(" at")
        return f"not valid JSON ({what} at column {error.colno}); correct it there"
    return "nested too deeply to be read" if isinstance(error, RecursionError) else str(error)
