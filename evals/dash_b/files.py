"""Answers of DASH-B as they are found in files, and the pictures that they are about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from vlmfix.evaluation.files.answers import Answer, Keys, answer_of, texts_of
from vlmfix.evaluation.files.readers import Record, examples, field_of, id_of, read_records, text_of
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no import yes_or_no

# Of the answers, so many may be about pictures that the lists lack; beyond that, the lists are others.
_MOST_UNKNOWN, _FEWEST_UNKNOWN = 0.02, 2


class _Picture(NamedTuple):
    """What tells one picture from all others; the name of its file is without ending."""

    gt: str
    object_name: str
    img_id: str

    def __str__(self) -> str:
        return "/".join(self)


def read_texts(
    path: str | Path, samples: Sequence[Sample], keys: Keys, *, partial: bool = False
) -> tuple[list[str | None], list[str]]:
    """The answer to each sample, and what has to be told.

    Answers have `gt`, `object_name` and `img_id` as those of DASH-B's code, or the id of a sample.

    Args:
        path: of the answers; those of DASH-B's code stand under `response`, beside the parsed `answer`.
        samples: from the lists.
        keys: of its records.
        partial: see `texts_of`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what it should be, does not tell the pictures, or more than 2 % of it are about
            pictures that the lists lack.
    """
    known: dict[Hashable, str] = {_picture_of(sample): sample.id for sample in samples}
    known |= {sample.id: sample.id for sample in samples}
    if len(known) < 2 * len(samples):
        raise ValueError(
            "two files of an object differ only in ending or leading zeros, so that img_id tells neither; "
            "fix the lists"
        )
    answers = [_answer(record, keys) for record in read_records(path)]

    def key(answer: Answer) -> Hashable:
        told = _told(answer.record, keys.id, known)
        return known.get(told, told)

    _refuse_other_lists(path, [_told(answer.record, keys.id, known) for answer in answers], known)
    texts, notes = texts_of(answers, [sample.id for sample in samples], key, by="picture", partial=partial)
    return [texts[sample.id] for sample in samples], notes


def _answer(record: Record, keys: Keys) -> Answer:
    raw = "response" if keys.answer is None and "response" in record else keys.answer
    return answer_of(record, Keys(answer=raw, id=keys.id))


def _picture_of(sample: Sample) -> _Picture:
    return _Picture(sample.target, sample.meta["object"], _stem(sample.id))


def _told(record: Record, id_key: str | None, known: dict[Hashable, str]) -> _Picture | str:
    """The id of a sample, or what the record says of its picture."""
    if id_key is not None:
        return str(id_of(record, (id_key,), "id of a sample"))
    if record.get("id") in known:
        return str(record["id"])
    missing = [name for name in _Picture._fields if name not in record]
    if missing:
        raise ValueError(
            f"{record.where}: no {' and no '.join(map(repr, missing))}; a picture is told by gt, object_name "
            "and img_id together, as several objects have files of one name"
        )
    name = text_of(record, ("object_name",), "object")
    label = yes_or_no(field_of(record, ("gt",), "label"), record.where)
    return _Picture(label, str(name), _stem(str(id_of(record, ("img_id",), "img_id"))))


def _stem(name: str) -> str:
    """The name of a file without ending; numbers may lack leading zeros."""
    stem = re.sub(r"\.[A-Za-z]+$", "", name.rpartition("/")[2])
    return str(int(stem)) if stem.isdecimal() else stem


def _refuse_other_lists(path: str | Path, told: Sequence[_Picture | str], known: dict[Hashable, str]) -> None:
    unknown = [each for each in told if each not in known]
    if len(unknown) < _FEWEST_UNKNOWN or len(unknown) <= _MOST_UNKNOWN * len(told):
        return
    all_, lacking = (
        Counter(each.gt for each in several if isinstance(each, _Picture)) for several in (told, unknown)
    )
    by_label = "".join(f", {lacking[gt]} of {all_[gt]} with gt {gt}" for gt in sorted(all_))
    raise ValueError(
        f"{path}: {len(unknown)} of {len(told)} answers are about pictures that the lists do not have"
        f"{by_label} ({examples(unknown)}); give the lists that these answers were made with"
    )
