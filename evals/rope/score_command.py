"""Files of answers scored with ROPE's figures, setting by setting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import ANSWER_KEYS, Answer, Keys, answer_of, texts_of
from vlmfix.evaluation.files.readers import read_records, sha256_of, text_of
from vlmfix.evaluation.report.formatting import signed_texts
from vlmfix.evaluation.report.json_summary import rounded
from vlmfix.evaluation.report.scored_samples import score_samples
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.ratios import ratio
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

from .dataset import DEFAULT, SINGLE, STUDENT, TEACHER, samples_of
from .entries import PARTS, SPLITS, picture_name, read_part
from .metrics import Classes, Macro, gap, macro, official_classes
from .slots import normalized
from .task import NORMALIZED, OFFICIAL, Rope, classes_of

PROTOCOLS = {
    DEFAULT: "rope.default",
    SINGLE: "rope.single",
    TEACHER: "rope.teacher-forcing",
    STUDENT: "rope.teacher-forcing",
}
"""A protocol whose answers are read as those of a setting."""


@dataclass(frozen=True)
class _Scored:
    """The answers of one file in one setting."""

    samples: Sequence[Sample]
    texts: Sequence[str | None]
    said: Sequence[Classes | None]
    found: ScoredFiles


def score_files(
    answers: Sequence[str | Path],
    settings: Sequence[str],
    data: str | Path,
    part: str,
    split: str,
    keys: Keys,
    *,
    partial: bool = False,
) -> ScoredFiles:
    """Score answers to the pictures of one split, setting by setting.

    Args:
        answers: files of objects from the name of a picture to the raw answer, such as
            `AAAAB_photo2answer.json`, with "-1" to "-5" after the name where one object was asked about; or
            records with such names as ids.
        settings: of these files, in their order.
        data: folder with the files of ROPE; the pictures need not be there.
        part: "validation" or "train".
        split: one of `SPLITS`.
        keys: of records.
        partial: leave out and count what has no partner, instead of refusing it.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be, or answers are of other pictures or lacking.
    """
    given = [("part", part, PARTS), ("split", split, SPLITS)]
    for what, value, known in [*given, *(("setting", setting, PROTOCOLS) for setting in settings)]:
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(known)}")
    if len(answers) != len(settings) or len(set(settings)) < len(settings):
        raise ValueError(
            f"{len(answers)} --answers with --setting {' '.join(settings)}; give each file its own setting"
        )
    folder = DataFolder.find(data)
    entries = read_part(folder, part)
    if split not in entries:
        raise FileNotFoundError(
            f"{data} has no {part}/{SPLITS[split]}; it has the splits {', '.join(entries)}"
        )
    scored: dict[str, _Scored] = {}
    for path, setting in zip(answers, settings, strict=True):
        protocol = load_protocol(PROTOCOLS[setting]).with_(setting=setting, part=part)
        samples = [
            sample
            for entry in entries[split]
            for sample in samples_of(entry, None, split, part, protocol, ())
        ]
        scored[setting] = _score(path, Rope(folder, protocol), samples, keys, partial)
    tables: list[Table] = []
    document: dict[str, Any] = {"task": "rope", "part": part, "split": split, "settings": {}}
    for setting, each in scored.items():
        official = setting in OFFICIAL
        secondary = {NORMALIZED: _own_figures(each)} | (
            {"official": _official_figures(each)} if official else {}
        )
        document["settings"][setting] = {**each.found.document, "secondary": rounded(secondary)}
        tables += [*each.found.tables, _secondary_table(setting, secondary)]
    if DEFAULT in scored and SINGLE in scored:
        alone, together = (scored[name] for name in (SINGLE, DEFAULT))
        found = gap((alone.samples, alone.said), (together.samples, together.said))
        document["multi-object gap"] = rounded(found)
        title = "multi-object gap: slot accuracy of single less that of default, points"
        tables.append(Table("slots", "pictures", "gap", "95 %", title=title))
        tables[-1].add_row(str(found.samples), str(found.clusters), *signed_texts(found, percent=True))
    notes = [f"{setting}: {note}" for setting, each in scored.items() for note in each.found.notes]
    return ScoredFiles({**document, "notes": notes}, tables, notes)


def _score(path: str | Path, task: Rope, samples: Sequence[Sample], keys: Keys, partial: bool) -> _Scored:
    single = len(samples[0].target) == 1
    wanted = [_name(sample) for sample in samples]
    answers = _read(path, keys)
    found, notes = texts_of(
        answers, wanted, lambda answer: _key(answer, single), by="picture", partial=partial
    )
    texts = [found[name] for name in wanted]
    if not any(text is not None for text in texts):
        raise ValueError(
            f"{path}: no answer is of a picture of this split; check --split, --part and --setting"
        )
    scores = [
        None if text is None else task.judge(sample, text, truncated=False)
        for sample, text in zip(samples, texts, strict=True)
    ]
    unmarked = sum(score is not None and score.parsed["unmarked"] for score in scores)
    if unmarked:
        notes.append(f"{unmarked} answers without obj1: and so on, whose five fields were taken in order")
    folder = task.folder
    files = {"answers": str(path), "answers_sha256": sha256_of(path)}
    files |= {Path(used["file"]).name: used["sha256"] for used in folder.used.values()}
    scored = score_samples(
        task,
        samples,
        texts,
        notes=notes,
        files=files,
        parsers=(NORMALIZED,) if task.protocol.own["setting"] in OFFICIAL else None,
    )
    return _Scored(samples, texts, classes_of(scores), scored)


def _read(path: str | Path, keys: Keys) -> list[Answer]:
    """The answers of one object from names to texts, or of records."""
    records = read_records(path)
    first = records[0]
    if len(records) == 1 and keys.answer is None and first.keys().isdisjoint(ANSWER_KEYS):
        return [
            Answer(text_of(first, (name,), "answer"), name, None, None, None, f"{path}, {name}", first)
            for name in first
        ]
    return [answer_of(record, keys) for record in records]


def _key(answer: Answer, single: bool) -> str:
    name = answer.image if answer.id is None else str(answer.id)
    if name is None:
        raise ValueError(
            f"{answer.where}: no name of a picture to join by; add it, or name its key with --id-key"
        )
    return _named(name, single)


def _name(sample: Sample) -> str:
    """What answers are joined by: the picture, and the number of the object where one was asked about."""
    name = _without_zeros(sample.meta["picture"])
    return name if len(sample.target) > 1 else f"{name}-{sample.meta['slots'][0] + 1}"


def _named(key: str, single: bool) -> str:
    """The same as a file spells it, with or without folder and ending."""
    name = picture_name(key)
    numbered = re.fullmatch(r"(.+)-([1-5])", name) if single else None
    if numbered is None:
        return _without_zeros(name)
    return f"{_without_zeros(picture_name(numbered[1]))}-{numbered[2]}"


def _without_zeros(name: str) -> str:
    """A name that is a number as it is where files have numbers."""
    return str(int(name)) if name.isdecimal() else name


def _own_figures(scored: _Scored) -> dict[str, float]:
    answered = [
        (each, said) for each, said in zip(scored.samples, scored.said, strict=True) if said is not None
    ]
    right = [normalized(name) for sample, _ in answered for name in sample.target]
    given = [name for _, said in answered for name in said]
    hits = sum(name == target for name, target in zip(given, right, strict=True))
    return _figures(hits, len(right), macro(given, right))


def _official_figures(scored: _Scored) -> dict[str, float]:
    answered = [
        (each, text) for each, text in zip(scored.samples, scored.texts, strict=True) if text is not None
    ]
    right = [name.lower() for sample, _ in answered for name in sample.target]
    read = [official_classes(sample, text) for sample, text in answered]
    given = [name for classes, _ in read for name in classes]
    hits = sum(name == target for name, target in zip(given, right, strict=True))
    return _figures(hits, sum(counted for _, counted in read), macro(given, right, parsed_only=True))


def _figures(hits: int, counted: int, means: Macro) -> dict[str, float]:
    return {
        "right": hits,
        "slots counted": counted,
        "accuracy": ratio(hits, counted),
        "macro precision": means.precision,
        "macro recall": means.recall,
        "macro F1": means.f1,
    }


def _secondary_table(setting: str, ways: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("figure", *(Column(way, justify="right") for way in ways), title=f"ROPE {setting}")
    for name in next(iter(ways.values())):
        cells = (each[name] for each in ways.values())
        table.add_row(name, *(f"{cell:.2%}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table
