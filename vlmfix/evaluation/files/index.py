"""Lists of what running numbers stand for: the image, or the id of the question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmfix.evaluation.files.answers import Answer
from vlmfix.evaluation.files.readers import Record, id_of, read_records

_NUMBER_KEYS = ("doc_id", "index", "number", "id", "question_id")


class Index:
    """A file that says what each running number stands for.

    Args:
        path: records with a number (`doc_id`, `index`, `number`, `id` or `question_id`), or one object from
            numbers to what they stand for.
        targets: keys of what they stand for.

    Raises:
        OSError: the file cannot be read.
        ValueError: a record has no number, or that of another one.
    """

    def __init__(self, path: str | Path, targets: Sequence[str]) -> None:
        self.path = path
        self._records: dict[int | str, Record] = {}
        numbers = [key for key in _NUMBER_KEYS if key not in targets]
        for record in self._read(targets[0]):
            number = id_of(record, numbers, "number")
            if number in self._records:
                raise ValueError(f"{record.where}: the number {number} comes twice; keep one")
            self._records[number] = record

    def __getitem__(self, answer: Answer) -> Record:
        """The record of an answer's number.

        Raises:
            ValueError: the answer has none, or the file has not this one.
        """
        given = next((each for each in (answer.number, answer.id, answer.image) if each is not None), None)
        if given is None:
            raise ValueError(f"{answer.where}: no number to be looked up in {self.path}; leave --index out")
        number = id_of(Record({"number": given}, answer.where), ("number",), "number")
        if number not in self._records:
            raise ValueError(f"{answer.where}: the number {number} is not in {self.path}; complete it")
        return self._records[number]

    def _read(self, target: str) -> list[Record]:
        records = read_records(self.path)
        if len(records) == 1 and all(key.isdigit() for key in records[0]):
            [only] = records
            return [Record({"number": key, target: value}, only.where) for key, value in only.items()]
        return [  # an object from numbers to texts is read as answers
            Record({"number": each["id"], target: each["answer"]}, each.where)
            if each.keys() == {"id", "answer"}
            else each
            for each in records
        ]
