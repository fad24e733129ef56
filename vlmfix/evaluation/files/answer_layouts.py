"""Layouts of answer files met in public: how they are recognised, and where their records hold what."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from vlmfix.evaluation.files.readers import Record

ANSWER_KEYS = (
    "answer",
    "prediction",
    "response",
    "output",
    "caption",
    "ans",
    "model_prediction",
    "model_answer",
    "filtered_resps",
    "text",
)
QUESTION_KEYS = ("query", "question", "prompt", "input", "text")
IMAGE_KEYS = ("image", "image_name", "file_name", "image_source", "image_path", "image_id")
ID_KEYS = ("question_id", "questionId", "id", "qid")
LABEL_KEYS = ("label", "target", "gt", "gt_answer", "ground_truth")

_OTHER_ANSWERS = tuple(name for name in ANSWER_KEYS if name != "text")
_BRIEF = (
    "captions end at the first blank line and after 64 tokens, unless the task was told otherwise: compare "
    "neither CHAIR nor lengths with whole captions"
)


@dataclass(frozen=True)
class Layout:
    """One way in which files hold answers.

    Where a record has several of the keys for a field, the first counts. A key such as `pope_*/question_id`
    leads through objects and, by number, lists; `*` stands for any text.

    Args:
        title: what the files are called in notes.
        keys: every record has one that fits each of these.
        lacks: no record has one that fits one of these.
        answer: keys of the answer. So too `question`, `image`, `label`, `id` and `split`.
        number: keys of a running number, which is no id but may be looked up in a file.
        fits: what else must be true of the records.
        refusal: why there is nothing to score, and what to do; "" if there is.
        note: what a reader has to know of such files.
    """

    title: str
    keys: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    answer: tuple[str, ...] = ANSWER_KEYS
    question: tuple[str, ...] = QUESTION_KEYS
    image: tuple[str, ...] = IMAGE_KEYS
    label: tuple[str, ...] = LABEL_KEYS
    id: tuple[str, ...] = ID_KEYS
    split: tuple[str, ...] = ()
    number: tuple[str, ...] = ()
    fits: Callable[[Sequence[Record]], bool] | None = None
    refusal: str = ""
    note: str = ""


def _is_owl(records: Sequence[Record]) -> bool:
    """Whether the pictures are called as those of OwlEval are."""
    return all(re.fullmatch(r"\d{1,2}\.jpg", str(record["image"])) for record in records)


_LMMS: dict[str, Any] = {
    "question": ("input", "arguments/0/0", "doc/question"),
    "label": ("target",),
    "id": ("*/question_id",),
    "number": ("doc_id",),
}

LAYOUTS = (
    Layout(
        "questions of LLaVA",
        ("question_id", "image", "text", "category"),
        ("label", "prompt", "question", *_OTHER_ANSWERS),
        refusal="they hold no answers; give what the model wrote",
    ),
    Layout(
        "questions of POPE-chat",
        ("text", "label", "chat_id"),
        refusal="they hold no answers; give what the model wrote, and these as labels",
    ),
    Layout(
        "labels of POPE",
        ("text", "label"),
        ("prompt", "question", "query", *_OTHER_ANSWERS),
        refusal="they hold no answers; give what the model wrote, and these as labels",
    ),
    Layout(
        "labels of POPE",
        ("question", "answer", "image_source", "category"),
        ("label", *(name for name in _OTHER_ANSWERS if name != "answer")),
        refusal="their answers are the right ones; give what the model wrote, and these as labels",
    ),
    Layout(
        "answers to MMHal-Bench",
        ("question_topic", "image_content", "model_answer"),
        refusal="a model has to judge them, and vlmfix has no judge",
    ),
    Layout(
        "answers to OwlEval",
        ("image", "question_id", "question", "answer"),
        ("label", "category"),
        fits=_is_owl,
        refusal="they are free texts, which people have to judge",
    ),
    Layout(
        "LLaVA answers",
        ("question_id", "prompt", "text"),
        _OTHER_ANSWERS,
        answer=("text",),
        question=("prompt",),
    ),
    Layout("log of PAI or PAINT", ("query", "label", "ans"), answer=("ans",), question=("query",)),
    Layout(
        "CHAIR samples of lmms-eval",
        ("doc_id", "filtered_resps", "coco_cap_chair_*"),
        answer=("filtered_resps",),
        **_LMMS | {"image": ("coco_cap_chair_*/image_id",)},
    ),
    Layout(
        "caption samples of lmms-eval",
        ("doc_id", "coco_*"),
        answer=("coco_*/pred",),
        note=_BRIEF,
        **_LMMS | {"image": ("coco_*/image_id",)},
    ),
    Layout(
        "samples of lmms-eval",
        ("doc_id", "filtered_resps"),
        answer=("filtered_resps",),
        split=("doc/category",),
        **_LMMS | {"image": ("doc/image_source",)},
    ),
    Layout(
        "table of VLMEvalKit",
        ("index", "prediction"),
        answer=("prediction",),
        question=("question",),
        image=("image_path", "image"),
        label=("answer",),
        id=(),
        split=("category",),
        number=("index",),
    ),
    Layout(
        "answers of RePOPE",
        ("question_id", "text", "label", "dataset", "response"),
        answer=("response",),
        question=("text",),
        split=("dataset",),
    ),
    Layout("output of the CHAIR code", ("image_id", "caption", "metrics"), answer=("caption",)),
    Layout("captions with times", ("image_id", "caption", "method", "new_tokens"), answer=("caption",)),
    Layout("captions", ("image_id", "caption"), _OTHER_ANSWERS[:4], answer=("caption",)),
    Layout("captions of several lengths", ("id", "response_*"), ("response",), answer=()),
    Layout("answers by running number", ("id", "response"), ("question_id", "image", "image_id")),
    Layout("answers of POPE's code", ("question", "answer"), (*ID_KEYS, "image"), answer=("answer",)),
    Layout("results of VQA", ("question_id", "answer"), ("question", "prompt", "image"), answer=("answer",)),
)
"""All layouts with a name; of several that fit, the first counts."""

OTHER = Layout("answers")
"""How everything else is read: by the usual keys."""


def recognised(records: Sequence[Record]) -> Layout:
    """The layout of a file by the keys of its records."""
    every = set.intersection(*(set(record) for record in records))
    some = set().union(*records)
    for layout in LAYOUTS:
        if (
            all(_has(every, key) for key in layout.keys)
            and not any(_has(some, key) for key in layout.lacks)
            and (layout.fits is None or layout.fits(records))
        ):
            return layout
    return OTHER


def first_of(record: Record, keys: Sequence[str]) -> tuple[str, Any] | None:
    """The first of the keys that a record has, as it stands there, with its value."""
    return next((found for key in keys for found in _values_at(record, key)), None)


def _values_at(content: Any, key: str) -> Iterator[tuple[str, Any]]:
    """What a key leads to, which may hold `*` and `/`, and by which way."""
    if isinstance(content, dict) and key in content:
        yield key, content[key]
        return
    first, _, rest = key.partition("/")
    steps: list[tuple[str, Any]] = []
    if isinstance(content, list) and first.isdigit():
        steps = [(first, each) for each in content[int(first) : int(first) + 1]]
    elif isinstance(content, dict):
        steps = [(name, value) for name, value in content.items() if fnmatchcase(name, first)]
    for name, value in steps:
        if rest:
            yield from ((f"{name}/{way}", found) for way, found in _values_at(value, rest))
        else:
            yield name, value


def _has(names: set[str], key: str) -> bool:
    return key in names or ("*" in key and any(fnmatchcase(name, key) for name in names))
