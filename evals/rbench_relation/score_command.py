"""A file of answers scored with R-Bench's figures, by our own rule and by the official one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.table import Column, Table

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import Answer, Keys, read_answers, texts_of
from vlmfix.evaluation.files.readers import examples, sha256_of, shown
from vlmfix.evaluation.report.json_summary import rounded
from vlmfix.evaluation.report.scored_samples import score_samples
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

from .dataset import relation_samples
from .official import FIGURES, mean_of_subsets, official_figures
from .questions import LEVELS, SUBSETS, VARIANTS, read_subsets
from .task import RBenchRelation

PROTOCOLS = dict(zip(LEVELS, ("rbench.image", "rbench.instance-box", "rbench.web"), strict=True))
"""A protocol of each level; boxes and masks have the same questions."""

# Of the answers, so many may be to other questions: releases differ in a few words.
_MOST_WRONG, _FEWEST_WRONG = 0.02, 2


def score_file(
    answers: str | Path,
    data: str | Path,
    level: str,
    *,
    variant: str,
    parsers: Sequence[str],
    keys: Keys,
    partial: bool = False,
) -> ScoredFiles:
    """Score answers against a level of R-Bench.

    Args:
        answers: JSON Lines of LLaVA's form with `question_id` and `text`, or any other that `read_answers`
            knows.
        data: folder with the question files; the pictures need not be there.
        level: one of `LEVELS`.
        variant: "all" counts every question once; "official" is the mean over the five lists of ids.
        parsers: of the variant "all"; "official" has a parser of its own.
        keys: of the records of the answers.
        partial: leave out and count what has no partner, instead of refusing it; the official script does so.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be, the answers are to other questions, a question is not
            answered, or one of the five lists is not answered at all.
    """
    for value, known, option in ((level, LEVELS, "level"), (variant, VARIANTS, "variant")):
        if value not in known:
            raise ValueError(f"unknown {option} {value!r}; choose from {', '.join(known)}")
    folder = DataFolder.find(data)
    task = RBenchRelation(folder, load_protocol(PROTOCOLS[level]).with_(parser=parsers[0]))
    samples = relation_samples(folder, task.protocol, None)
    given = read_answers(answers, keys)
    notes = _check_questions(answers, given, samples)
    if variant == "official":
        found = _official(read_subsets(folder, level), given, samples, level, notes, partial=partial)
    else:
        asked = [sample.meta["question_id"] for sample in samples]
        texts, told = texts_of(given, asked, _id, by="question id", partial=partial)
        own = [texts[id] for id in asked]
        found = score_samples(task, samples, own, notes=[*notes, *told], parsers=parsers)
    files = {"answers": str(answers), "answers_sha256": sha256_of(answers)}
    files |= {Path(used["file"]).name: used["sha256"] for used in folder.used.values()}
    return ScoredFiles({**found.document, "files": files}, found.tables, found.notes)


def _official(
    subsets: Sequence[Sequence[int | str]],
    given: Sequence[Answer],
    samples: Sequence[Sample],
    level: str,
    notes: Sequence[str],
    *,
    partial: bool,
) -> ScoredFiles:
    by_id = {sample.meta["question_id"]: sample for sample in samples}
    wanted = list(dict.fromkeys(id for subset in subsets for id in subset))
    strange = [id for id in wanted if id not in by_id]
    if strange:
        raise ValueError(
            f"{len(strange)} ids of the five lists are of no question ({examples(strange)}); give lists and "
            "questions of one version"
        )
    listed = set(wanted)
    needed = [each for each in given if _id(each) in listed or _id(each) not in by_id]
    texts, told = texts_of(needed, wanted, _id, by="question id", partial=partial)
    figures = []
    for number, subset in enumerate(subsets, 1):
        answered = [(text, by_id[id].target) for id in subset if (text := texts[id]) is not None]
        if not answered:
            raise ValueError(
                f"no question of list {number} of {SUBSETS} is answered, and a mean over the others compares "
                "with nothing; complete the answers"
            )
        figures.append(official_figures(*zip(*answered, strict=True)))
    mean = mean_of_subsets(figures)
    heads = (Column(name.replace("_", " "), justify="right") for name in FIGURES)
    table = Table("ids", *heads, title=f"R-Bench {level} level, official, percent")
    rows = {f"list {number}": each for number, each in enumerate(figures, 1)} | {"mean": mean}
    for name, each in rows.items():
        table.add_row(name, *(f"{100 * each[figure]:.2f}" for figure in FIGURES))
    document = {
        "task": "rbench_relation",
        "variant": "official",
        "level": level,
        "subsets": figures,
        "mean": mean,
        "notes": [*notes, *told],
    }
    return ScoredFiles(rounded(document), [table], [*notes, *told])


def _id(answer: Answer) -> int | str:
    if answer.id is None:
        raise ValueError(f"{answer.where}: no question_id to join by; add it, or name its key with --id-key")
    return answer.id


def _check_questions(path: str | Path, given: Sequence[Answer], samples: Sequence[Sample]) -> list[str]:
    """Refuse answers of which many are to other questions with the same ids; what has to be told, if not.

    Raises:
        ValueError: more than 2 % of those that can be compared are.
    """
    texts = {sample.meta["question_id"]: sample.meta["question"] for sample in samples}
    pairs = [(each, texts[_id(each)]) for each in given if each.question and _id(each) in texts]
    if not pairs:
        return ["the answers do not tell their questions: nothing but their ids says that they belong here"]
    wrong = [(each, text) for each, text in pairs if _words(text) not in _words(each.question or "")]
    if len(wrong) >= _FEWEST_WRONG and len(wrong) > _MOST_WRONG * len(pairs):
        answer, text = wrong[0]
        raise ValueError(
            f"{path}: {len(wrong)} of {len(pairs)} answers are to other questions, such as "
            f"{shown(answer.question)} in place of {shown(text)}; give the answers of this level"
        )
    return []


def _words(text: str) -> str:
    unmarked = re.sub(r" in (?:red|green) (?:bounding box|mask)", "", text.lower())
    return " ".join(re.findall(r"\w+", unmarked))
