"""Records of a file as answers: which of their keys hold what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmfix.evaluation.files.answer_layouts import OTHER, Layout, first_of
from vlmfix.evaluation.files.readers import Record, field_of, id_of, shown, text_of

# What VLMEvalKit writes where a request failed.
_FAILED = "Failed to obtain answer"


@dataclass(frozen=True)
class Keys:
    """Keys of a record for its answer, its id and what is right; None: those of its layout.

    Args:
        answer: key of the answer.
        id: of the question's id.
        label: of what is right.
        sample: of several answers to one question this one, from 1 on; None: there must be one only.
        strip_prompt: leave out a prompt that stands before the answer.
    """

    answer: str | None = None
    id: str | None = None
    label: str | None = None
    sample: int | None = None
    strip_prompt: bool = False


@dataclass(frozen=True)
class Answer:
    """One answer of a file.

    Args:
        text: raw; None for null, which is no answer, while "" is an empty one.
        id: of the question; None where the file has none. So too `question` and `image`.
        question: what was asked.
        image: as the file names it, or its number.
        label: what is right, as the file has it; None where it does not tell.
        where: place in the file, in words.
        record: all that the file says.
        split: of the question, where the layout has one.
        number: a running number, which is no id.
    """

    text: str | None
    id: int | str | None
    question: str | None
    image: str | None
    label: Any
    where: str
    record: Record
    split: str | None = None
    number: int | str | None = None


class AnswerReader:
    """Turns the records of a file into answers, and notes on the way which keys they have."""

    def __init__(self, keys: Keys, layout: Layout, what: str = "answer", numbers: bool = False) -> None:
        self.keys, self.layout, self.what, self.numbers = keys, layout, what, numbers
        self.used: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}

    def answer(self, record: Record) -> Answer:
        keys, layout = self.keys, self.layout
        name, value = self._given(record)
        text = self._text(record, value)
        asked = self._first(record, "question", [key for key in layout.question if key != name])
        image = self._first(record, "image", layout.image)
        label = self._first(
            record, "label", [key for key in layout.label if key != name], required=keys.label
        )
        split = self._first(record, "split", layout.split)
        number = self._first(record, "number", layout.number)
        return Answer(
            text=text,
            id=self._id(record),
            question=asked if isinstance(asked, str) else None,
            image=_image(image),
            label=label,
            where=record.where,
            record=record,
            split=split if isinstance(split, str) else None,
            number=number if isinstance(number, int | str) else None,
        )

    def _first(self, record: Record, field: str, keys: Sequence[str], required: str | None = None) -> Any:
        """The value of a field, if the record has it."""
        if required is not None:
            field_of(record, [required], field)
            keys = [required]
        found = first_of(record, keys)
        if found is None:
            return None
        self._note(field, found[0])
        return found[1]

    def _given(self, record: Record) -> tuple[str, Any]:
        """Key and value of the answer."""
        keys, layout = self.keys, self.layout
        if keys.answer is not None:
            names: Sequence[str] = (keys.answer,)
        elif not layout.answer:
            found = [name for name in record if name.startswith("response")]
            raise ValueError(
                f"{record.where}: {', '.join(map(repr, found))} could all be the answer; choose with "
                "--answer-key"
            )
        else:
            names = layout.answer
            if layout is OTHER:
                names = [name for name in names if name != "text" or not _asks(record)]
                _refuse_several(record, names)
        first = first_of(record, names)
        if first is None:
            field_of(record, sorted(names, key=lambda name: name != self.what), self.what)
            raise AssertionError
        self._note("answer", first[0])
        return first

    def _text(self, record: Record, value: Any) -> str | None:
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            number = self.keys.sample
            if number is None or number > len(value):
                raise ValueError(
                    f"{record.where}: the {self.what} is a list of {len(value)} texts; choose one with "
                    f"--sample 1 to {len(value)}"
                )
            value = value[number - 1]
        if self.numbers and isinstance(value, int | float) and not isinstance(value, bool):
            self._count("answers that are numbers, read as texts")
            value = str(value)
        text = text_of(Record({self.what: value}, record.where), [self.what], self.what)
        if text is not None and self.layout.title == "table of VLMEvalKit":
            if text == "nan":
                self._count("answers are 'nan', as spreadsheets write empty ones, and count as empty")
                return ""
            if _FAILED in text:
                self._count("requests failed and have no answer")
                return None
        return text

    def _id(self, record: Record) -> int | str | None:
        if self.keys.id is not None:
            self._note("id", self.keys.id)
            return id_of(record, [self.keys.id], "question id")
        found = first_of(record, self.layout.id)
        if found is None:
            return None
        self._note("id", found[0])
        return id_of(Record({found[0]: found[1]}, record.where), [found[0]], "question id")

    def _note(self, field: str, key: str) -> None:
        known = self.used.setdefault(field, [])
        if key not in known:
            known.append(key)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def _image(value: Any) -> str | None:
    """An image as a text; what is neither name nor number does not tell which it is."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None


def _asks(record: Record) -> bool:
    """Whether `text` is the question: nothing else is, and the record is one of labels or questions."""
    if "prompt" in record or "question" in record:
        return False
    text = record.get("text")
    asks = isinstance(text, str) and "?" in text
    return "label" in record or "category" in record or ("image" in record and asks)


def _refuse_several(record: Record, names: Sequence[str]) -> None:
    found = [name for name in names if name in record and name != "text"]
    if len({shown(record[name]) for name in found}) > 1:
        raise ValueError(
            f"{record.where}: {' and '.join(map(repr, found))} could both be the answer; choose with "
            "--answer-key"
        )
