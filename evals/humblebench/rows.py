"""Questions of HumbleBench (arXiv 2509.09658), as its data and files of answers have them."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vlmfix.evaluation.files.answers import ID_KEYS
from vlmfix.evaluation.files.readers import Record, field_of, id_of, shown, text_of

Variant = Literal["humble", "humble_e", "humble_gn"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""As it is; without the right option, so that E is right everywhere; with a picture of noise."""

LETTERS = "ABCDE"
NONE_OF_THESE = "E"
"""The option "None of the above"."""

ROWS = 22_831
"""Questions of the published data."""

TYPES = ("Object", "Relation", "Attribute")
_OLD_TYPES = ("Category", "Location", "Weather")

_OPTION = re.compile(r"([A-E])\.(.*)")


@dataclass(frozen=True)
class Row:
    """One question.

    Args:
        id: unique.
        image: path of the picture, as the data have it.
        question: the question, then one line an option.
        label: letter of the right option.
        type: one of `TYPES`.
        where: place in the file, in words.
    """

    id: int | str
    image: str
    question: str
    label: str
    type: str
    where: str


def options_of(question: str) -> dict[str, str]:
    """The texts of the options by letter: the lines after the first that begin with one.

    Raises:
        ValueError: a letter comes twice.
    """
    options: dict[str, str] = {}
    for line in question.splitlines()[1:]:
        if found := _OPTION.match(line.strip()):
            if found[1] in options:
                raise ValueError(f"the option {found[1]} comes twice")
            options[found[1]] = found[2].strip()
    return options


def without_answer(row: Row) -> Row:
    """The row without its right option, so that E is right; other letters stay. One with E is as it is."""
    if row.label == NONE_OF_THESE:
        return row
    first, *others = row.question.split("\n")
    kept = [line for line in others if not line.strip().startswith(f"{row.label}.")]
    return dataclasses.replace(row, question="\n".join([first, *kept]), label=NONE_OF_THESE)


def read_rows(records: Iterable[Record], *, without_answers: bool = False) -> list[Row]:
    """The rows of a file; types by their old names are renamed, with a warning.

    Args:
        records: of the data, or of answers that carry their questions.
        without_answers: whether right options are left out already (`humble_e`).

    Raises:
        ValueError: a field is missing or wrong, or an id comes twice.
    """
    rows: dict[int | str, Row] = {}
    old: Counter[str] = Counter()
    for record in records:
        kind = _text(record, "type")
        old[kind] += kind in _OLD_TYPES
        row = checked_row(
            Row(
                id=id_of(record, ID_KEYS, "question id"),
                image=image_of(field_of(record, ("image",), "image"), record.where),
                question=_text(record, "question"),
                label=_text(record, "label"),
                type=kind,
                where=record.where,
            ),
            without_answers=without_answers,
        )
        if row.id in rows:
            raise ValueError(f"{row.where}: question_id {row.id} comes twice; ids must be unique")
        rows[row.id] = row
    warn_of_old_types(old)
    return list(rows.values())


def checked_row(row: Row, *, without_answers: bool = False) -> Row:
    """The row, its type by its present name.

    Args:
        row: as it was read.
        without_answers: see `read_rows`.

    Raises:
        ValueError: label or type is unknown, or options are missing.
    """
    if row.label not in LETTERS or len(row.label) != 1:
        raise ValueError(f"{row.where}: label is {shown(row.label)}; it must be one of {', '.join(LETTERS)}")
    if row.type not in (*TYPES, *_OLD_TYPES):
        raise ValueError(f"{row.where}: type is {shown(row.type)}; it must be one of {', '.join(TYPES)}")
    try:
        missing = [letter for letter in LETTERS if letter not in options_of(row.question)]
    except ValueError as error:
        raise ValueError(f"{row.where}: {error} in the question; keep one") from None
    allowed = 1 if without_answers and NONE_OF_THESE not in missing else 0
    if len(missing) > allowed:
        hint = "; questions of humble_e lack one" if missing != [NONE_OF_THESE] and len(missing) == 1 else ""
        raise ValueError(
            f"{row.where}: the question has no option {', '.join(missing)}, and options are lines such as "
            f"'A. a cat'{hint}"
        )
    return dataclasses.replace(row, type=TYPES[0]) if row.type in _OLD_TYPES else row


def image_of(value: Any, where: str) -> str:
    """The path of a picture, of an object with it or alone.

    Raises:
        ValueError: there is none.
    """
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{where}: the image is {shown(path)}; it must be a path, or an object with one")
    return path


def check_variant(labels: Sequence[str], variant: Variant, of: str) -> None:
    """Refuse answers to another variant: E is right everywhere in `humble_e`, and only there.

    Args:
        labels: that the answers carry; none tell nothing.
        variant: that they ought to be of.
        of: their file.

    Raises:
        ValueError: they are of another one.
    """
    others = sum(label != NONE_OF_THESE for label in labels)
    if variant == "humble_e" and others:
        raise ValueError(
            f"{of} is not of humble_e, where every label is E: {others:,} of {len(labels):,} are others; "
            "score it with --variant humble or humble_gn"
        )
    if variant != "humble_e" and labels and not others:
        raise ValueError(f"every label of {of} is E, so it is of humble_e; score it with --variant humble_e")


def warn_of_old_types(counts: Mapping[str, int]) -> None:
    """Say which types were renamed, and how often."""
    found = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items()) if count)
    if found:
        warnings.warn(f"types by their old names count as {TYPES[0]}: {found}", stacklevel=3)


def _text(record: Record, name: str) -> str:
    text = text_of(record, (name,), name)
    if not text or not text.strip():
        raise ValueError(f"{record.where}: {name} is {shown(text)}; it must be a text")
    return text
