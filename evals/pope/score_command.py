"""POPE files scored with several parsers, split by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.answers import Answer, Keys
from vlmfix.evaluation.files.pairs import UNCHECKED
from vlmfix.evaluation.files.readers import sha256_of
from vlmfix.evaluation.tasks.ratios import object_errors, ratio
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict, parser_named

from . import scores as pope
from .files import Label
from .pairing import Join, Pairing, check_pairs, ids_on_both, pair
from .repope import Corrected, Judged, corrected
from .scores import Score
from .splits import Pair, read_pairs

PAIRINGS = ("auto", "position", "id", "question")
_JOINED = {"question": "image and object"}


@dataclass(frozen=True)
class Split:
    """One answer file scored against one label file.

    Args:
        name: from the name of the label file, such as "random".
        files: paths and SHA-256 of both files.
        data: of the labels: rows, images, share of yes.
        counts: what was found while pairing, for each parser.
        scores: for each parser.
        judged: for each parser the answers with their labels, and what it made of them.
        told: how its files were read and joined.
    """

    name: str
    files: Mapping[str, str]
    data: Mapping[str, float]
    counts: Mapping[str, Mapping[str, float | str]]
    scores: Mapping[str, Score]
    judged: Mapping[str, Sequence[Judged]]
    told: Sequence[str]


@dataclass(frozen=True)
class Report:
    """All splits, the unweighted mean over them, and all rows taken together.

    Args:
        splits: in the order given.
        mean: for each parser the mean of each of `pope.FIGURES`.
        pooled: for each parser the score of all rows of all splits; the F1 of `vlmevalkit` is the "Overall"
            of VLMEvalKit, in which a question counts once for each split that it is in.
        corrected: the splits under RePOPE's labels, where these were given.
    """

    splits: Sequence[Split]
    mean: Mapping[str, Mapping[str, float]]
    pooled: Mapping[str, Score]
    corrected: Sequence[Corrected] = ()

    @property
    def notes(self) -> list[str]:
        """What a reader has to know beside the figures, in sentences."""
        found = list(dict.fromkeys(note for split in self.splits for note in split.told))
        for split in self.splits:
            for counts in {each["pairing"]: each for each in split.counts.values()}.values():
                told = [f"{value} {_TOLD[key]}" for key, value in counts.items() if key in _TOLD and value]
                if told:
                    found.append(f"{split.name}, paired by {counts['pairing']}: {', '.join(told)}")
            undefined = {name for each in split.scores.values() for name in each.undefined}
            if undefined:
                found.append(f"{split.name}: zero denominator, shown as 0: {', '.join(sorted(undefined))}")
            figures = [each.accuracy for each in split.scores.values()]
            if max(figures) - min(figures) > 0.005:
                found.append(f"{split.name}: the parsers differ by more than 0.5 points of accuracy")
        return found


_TOLD = {
    "missing": "labels without an answer",
    "unknown": "answers with an unknown id left out",
    "duplicates": "answers with a repeated id left out",
    "repeated": "answers that stand there twice, taken once",
    "duplicate_labels": "labels with a repeated id left out",
    "surplus": "answers beyond the labels",
    "disagreeing": "PAIRS WHOSE ID, QUESTION OR IMAGE DIFFER",
    "null_answers": "null answers left out",
    "rewritten_labels": "labels not in lower case",
}


def score_files(
    answers: Sequence[str | Path],
    labels: Sequence[str | Path] = (),
    parsers: Sequence[str] = (pope.DEFAULT_PARSER,),
    *,
    pairing: str = "auto",
    allow_partial: bool = False,
    keys: Keys | None = None,
    questions: str | Path | None = None,
    repope: str | Path | None = None,
) -> Report:
    """Score answer files against label files, the first with the first and so on.

    Args:
        answers: answer files, one a split; or one file of several splits, which its ids or a field tell
            apart.
        labels: POPE question files, as many; of a file of several splits, one for each that is scored. None:
            the labels beside the answers.
        parsers: names in `PARSERS`.
        pairing: "auto" pairs by position under `official` and joins by question id under the others
            where both files carry ids; "question" joins by image and asked object.
        allow_partial: leave out and count what has no partner, instead of refusing it.
        keys: of the records; see `read_answers`.
        questions: LLaVA's question file, which names split and image of each id of its answer file.
        repope: folder of RePOPE's label files, by which the same answers are scored, too.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not what it should be, or answers and labels do not fit: more than 2 % of the
            pairs are about another image or object.
    """
    if not answers:
        raise ValueError("no files to score; give --answers and --labels")
    if pairing not in PAIRINGS:
        raise ValueError(f"unknown pairing {pairing!r}; choose from {', '.join(PAIRINGS)}")
    for name in parsers:
        parser_named(name)
    splits = [
        _scored(each, parsers, pairing, allow_partial=allow_partial)
        for each in read_pairs(answers, labels, keys or Keys(), questions)
    ]
    every = {parser: [row for split in splits for row in split.judged[parser]] for parser in parsers}
    return Report(
        splits=splits,
        mean={name: pope.mean_of_splits([split.scores[name] for split in splits]) for name in parsers},
        pooled={name: _score(name, rows) for name, rows in every.items()},
        corrected=[] if repope is None else [corrected(each.name, repope, each.judged) for each in splits],
    )


def _scored(given: Pair, parsers: Sequence[str], pairing: str, *, allow_partial: bool) -> Split:
    """The figures of one split."""
    target = given.labels
    judged: dict[str, list[Judged]] = {}
    counts: dict[str, Mapping[str, float | str]] = {}
    scores = {}
    told = list(given.answers.notes) + list(given.notes)
    for parser in parsers:
        join = given.join if given.join and pairing == "auto" else None
        join = join or _join(parser, given.answers, target, pairing)
        paired = pair(given.answers, target, join, partial=allow_partial, truncate=parser == "official")
        is_checked = check_pairs(paired, " and ".join(map(str, given.paths)))
        told.append(given.answers.reading(_JOINED.get(join, join)))
        if not is_checked:
            told.append(UNCHECKED)
        judged[parser] = [(each, label, _verdict(parser, each, label.label)) for each, label in paired.pairs]
        # only the official script reads answers without a label, for its yes ratio
        beyond = [_verdict(parser, each, "yes") for each in paired.surplus if parser == "official"]
        scores[parser] = _score(parser, judged[parser], beyond)
        counts[parser] = _counts(paired, given.answers, target)
    data = {
        "rows": len(target),
        "images": len({label.image for label in target}),
        "yes_share": sum(label.label == "yes" for label in target) / len(target),
    }
    files = {
        "answers": str(given.paths[0]),
        "answers_sha256": sha256_of(given.paths[0]),
        "labels": str(given.paths[1]),
        "labels_sha256": sha256_of(given.paths[1]),
    }
    return Split(given.name, files, data, counts, scores, judged, told)


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON document, with what each parser made of each answer."""
    return {
        "task": "pope",
        "splits": [
            {
                "name": split.name,
                "files": split.files,
                "data": split.data,
                "counts": split.counts,
                "scores": _as_fields(split.scores),
                "objects": {name: _objects(rows) for name, rows in split.judged.items()},
                "samples": {name: [_sample(*row) for row in rows] for name, rows in split.judged.items()},
            }
            for split in report.splits
        ],
        "mean": report.mean,
        "pooled": _as_fields(report.pooled),
        "repope": [
            vars(each) | {"kept": _as_fields(each.kept), "scores": _as_fields(each.scores)}
            for each in report.corrected
        ],
        "notes": report.notes,
    }


def _as_fields(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    return {name: vars(each) for name, each in scores.items()}


def _join(parser: str, answers: Sequence[Answer], labels: Sequence[Label], pairing: str) -> Join:
    if pairing == "question":
        return "question"
    if pairing == "position" or (pairing == "auto" and parser == "official"):
        return "position"
    return "id" if pairing == "id" or ids_on_both(answers, labels) else "position"


def _verdict(parser: str, answer: Answer, target: Verdict) -> Verdict | None:
    return None if answer.text is None else PARSERS[parser](answer.text, target)


def _score(parser: str, rows: Sequence[Judged], beyond: Sequence[Verdict | None] = ()) -> Score:
    verdicts = [verdict for _, _, verdict in rows]
    return pope.score([*verdicts, *beyond], [label.label for _, label, _ in rows], parser=parser)


def _counts(paired: Pairing, answers: Sequence[Answer], labels: Sequence[Label]) -> dict[str, float | str]:
    words = [len(each.text.split()) for each in answers if each.text is not None]
    return {
        "pairing": paired.join,
        "answers": len(answers),
        "labels": len(labels),
        "paired": len(paired.pairs),
        "missing": paired.missing,
        "unknown": paired.unknown,
        "duplicates": paired.duplicates,
        "repeated": paired.repeated,
        "duplicate_labels": paired.duplicate_labels,
        "surplus": len(paired.surplus),
        "disagreeing": paired.disagreeing,
        "null_answers": sum(each.text is None for each in answers),
        "empty_answers": sum(each.text is not None and not each.text.strip() for each in answers),
        "rewritten_labels": sum(label.rewritten for label in labels),
        "mean_words": ratio(sum(words), len(words)),
    }


def _objects(rows: Sequence[Judged]) -> dict[str, dict[str, int]]:
    asked = [(label.object, verdict == label.label) for _, label, verdict in rows]
    errors = object_errors([(name, right) for name, right in asked if name is not None])
    return {name: {"wrong": wrong, "asked": count} for name, (wrong, count) in errors.items()}


def _sample(answer: Answer, label: Label, verdict: Verdict | None) -> dict[str, Any]:
    question_id = answer.id if label.id is None else label.id
    return {
        "question_id": question_id,
        "image": label.image,
        "question": label.question,
        "label": label.label,
        "answer": answer.text,
        "verdict": verdict,
    }
