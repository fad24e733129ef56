"""RePOPE: POPE's answers under labels that people corrected (arXiv 2504.15707); no new answers are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmfix.evaluation.datasets.layouts import SPLITS
from vlmfix.evaluation.files.answers import Answer
from vlmfix.evaluation.files.readers import examples, sha256_of
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.ratios import ratio
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict

from . import scores as pope
from .files import Label, read_labels
from .scores import Score

Judged = tuple[Answer, Label, Verdict | None]


@dataclass(frozen=True)
class Corrected:
    """One split under corrected labels, for each parser.

    RePOPE turns wrong labels and removes ambiguous questions, so that both are shown apart.

    Args:
        name: of the split.
        file: path and SHA-256 of the corrected labels.
        rows: answered questions that RePOPE keeps.
        yes_share: of these, how many are right with yes.
        kept: scores on these by POPE's labels.
        scores: scores on these by RePOPE's labels.
        turned: questions among them whose label RePOPE turned.
        turned_right: of these, how many answers agree with RePOPE.
    """

    name: str
    file: Mapping[str, str]
    rows: int
    yes_share: float
    kept: Mapping[str, Score]
    scores: Mapping[str, Score]
    turned: int
    turned_right: Mapping[str, int]


def corrected_labels(root: Path | None, samples: Sequence[Sample]) -> dict[str, Verdict]:
    """RePOPE's labels of the samples of COCO that it keeps, from `coco_repope_<split>.json` below a folder.

    They are no part of what is asked: answers of a run are judged by them, too, and stay valid.

    Args:
        root: of the data.
        samples: of POPE, with `pope/coco/<split>/<question id>` as ids.

    Returns:
        Labels by the id of the sample; none where a file is missing.

    Raises:
        ValueError: a file is not what it should be, or asks other questions under POPE's ids.
    """
    if root is None or not any(sample.id.startswith("pope/coco/") for sample in samples):
        return {}
    found: dict[str, Verdict] = {}
    asked = {sample.id: sample for sample in samples}
    for split in SPLITS:
        path = next(iter(sorted(root.glob(f"**/coco_repope_{split}.json"))), None)
        if path is None:
            return {}
        for label in read_labels(path):
            id = f"pope/coco/{split}/{label.id}"
            sample = asked.get(id)
            if sample is None or (label.image, label.question) != (sample.cluster, sample.meta["question"]):
                raise ValueError(
                    f"{label.where}: question {label.id} is another one than in POPE's {split} file; these "
                    "labels are of another release of POPE: move them away"
                )
            found[id] = label.label
    return found


def corrected(name: str, folder: str | Path, judged: Mapping[str, Sequence[Judged]]) -> Corrected:
    """Score the answers of a split by RePOPE's labels.

    Args:
        name: "random", "popular" or "adversarial".
        folder: with `coco_repope_<name>.json`.
        judged: for each parser the answers with POPE's labels, and what it made of them.

    Raises:
        OSError: there is no such file.
        ValueError: it is not what it should be, or asks other questions under POPE's ids.
    """
    path = Path(folder) / f"coco_repope_{name}.json"
    right = {label.id: label for label in read_labels(path)}
    asked = {label.id: label for rows in judged.values() for _, label, _ in rows}
    if None in right or None in asked:
        raise ValueError(
            f"{path} and the labels of POPE are joined by question_id, and a row has none; add it"
        )
    other = [
        id
        for id, label in right.items()
        if id in asked and (label.image, label.question) != (asked[id].image, asked[id].question)
    ]
    if other:
        raise ValueError(
            f"{path} asks something else than the labels of POPE under {len(other)} question ids "
            f"({examples(other)}); these labels are of another release of POPE"
        )
    if right.keys().isdisjoint(asked):
        raise ValueError(f"{path} has no question that was answered; give the labels of the same split")
    rows = {
        parser: [
            (answer, label, right[label.id], verdict) for answer, label, verdict in each if label.id in right
        ]
        for parser, each in judged.items()
    }
    again = {
        parser: [
            None if answer.text is None else PARSERS[parser](answer.text, label.label)
            for answer, _, label, _ in each
        ]
        for parser, each in rows.items()
    }
    first = next(iter(rows.values()))
    turned = sum(before.label != after.label for _, before, after, _ in first)
    return Corrected(
        name=name,
        file={"labels": str(path), "labels_sha256": sha256_of(path)},
        rows=len(first),
        yes_share=ratio(sum(after.label == "yes" for _, _, after, _ in first), len(first)),
        kept={
            parser: pope.score(
                [verdict for *_, verdict in each], [before.label for _, before, _, _ in each], parser=parser
            )
            for parser, each in rows.items()
        },
        scores={
            parser: pope.score(again[parser], [after.label for _, _, after, _ in each], parser=parser)
            for parser, each in rows.items()
        },
        turned=turned,
        turned_right={
            parser: sum(
                before.label != after.label and verdict == after.label
                for (_, before, after, _), verdict in zip(each, again[parser], strict=True)
            )
            for parser, each in rows.items()
        },
    )
