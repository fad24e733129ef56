"""Files of answers to HallusionBench, scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import Answer, Keys, answer_of, check_pairs, texts_of
from vlmfix.evaluation.files.readers import Record, examples, read_records, sha256_of
from vlmfix.evaluation.report.scored_samples import score_samples
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles, counts_table
from vlmfix.evaluation.tasks.yes_no import yes_or_no
from vlmfix.evaluation.tasks.yes_no_parsers import parser_named

from .dataset import FILES, item_samples, other_number
from .figures import RULES
from .items import ITEMS, WITH_IMAGE, Item, name_of, read_items
from .judge import CORRECTNESS, SAMENESS, Verdict, diagnoses, is_same, verdict_of
from .task import JUDGE, HallusionBench

# lmms-eval keeps the item with its answer under each of its figures.
_LMMS_EVAL = "aAcc"


def score_files(
    answers: str | Path,
    data: str | Path | None = None,
    *,
    rule: str = RULES[0],
    parsers: Sequence[str] = (),
    partial: bool = False,
    answer_key: str | None = None,
) -> ScoredFiles:
    """Score answers to HallusionBench.

    Args:
        answers: records with the keys that name an item, and an answer; with all keys of the data, too,
            `data` is not needed.
        data: the file HallusionBench.json, or a folder with it.
        rule: one of `RULES`.
        parsers: names, the headline first; none: the one of the rule's protocol.
        partial: whether answers may be missing, unknown or contradict each other, and are left out.
        answer_key: of the answer in its record.

    Raises:
        OSError: a file cannot be read.
        ValueError: files are broken or do not fit each other, or a name is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"unknown protocol {rule!r}; choose from {', '.join(RULES)}")
    protocol = load_protocol(f"hallusionbench.{rule}").on("custom")
    for name in parsers:
        parser_named(name)
    if parsers:
        protocol = protocol.with_(parser=parsers[0])
    given = [_answer(record, answer_key) for record in read_records(answers)]
    path = Path(answers) if data is None else _data_file(Path(data))
    own = _own_items(given, path, rule, partial=partial) if data is None else None
    items = read_items(read_records(path)) if own is None else own
    by_name = {item.name: item for item in items}
    kept = [answer for answer in given if _is_wanted(answer, by_name, rule)]
    verdicts = {} if rule == "parse_image_only" else _verdicts(kept, by_name, partial=partial)
    samples = item_samples(items, protocol, judged=verdicts)
    wanted = [sample.id.partition("/")[2] for sample in samples]
    texts, notes = texts_of(kept, wanted, lambda answer: name_of(answer.record), by="item", partial=partial)
    known = [(answer, by_name[name]) for answer in kept if (name := name_of(answer.record)) in by_name]
    notes += check_pairs(
        [(answer, item.question, item.target) for answer, item in known],
        lambda answer: yes_or_no(answer.label, answer.where),
        of=str(path),
    )
    if data is not None and len(items) != ITEMS:
        notes.append(f"{path}: {other_number(len(items))}")
    if missing := sum(text is None for text in texts.values()):
        notes.append(
            f"{1 - missing / len(texts):.2%} of the items are answered; figures and questions with a missing "
            "item count in aAcc alone"
        )
    files = {"answers": str(answers), "answers_sha256": sha256_of(answers)}
    if data is not None:
        files |= {"data": str(path), "data_sha256": sha256_of(path)}
    judged = _judged(kept, by_name, verdicts) if verdicts else None
    scored = score_samples(
        HallusionBench(DataFolder(), protocol),
        samples,
        [texts[name] for name in wanted],
        parsers=[*(parsers or [protocol.parser]), JUDGE],
        notes=[*notes, *(judged.notes if judged else [])],
        files=files,
    )
    if judged is None:
        return scored
    return ScoredFiles({**scored.document, **judged.document}, [*scored.tables, *judged.tables], scored.notes)


def _answer(record: Record, answer_key: str | None) -> Answer:
    """The answer of a record, or of what lmms-eval keeps in it."""
    inner = record.get(_LMMS_EVAL)
    own = Record(inner, record.where) if isinstance(inner, dict) else record
    return answer_of(own, Keys(answer=answer_key))


def _data_file(path: Path) -> Path:
    return DataFolder.find(path).find_file("hallusionbench", *FILES) if path.is_dir() else path


def _own_items(given: Sequence[Answer], path: Path, rule: str, *, partial: bool) -> list[Item]:
    """The items that a file of answers describes itself; it must be complete, as nothing says what it lacks.

    Raises:
        ValueError: it is not, or an item is described wrongly.
    """
    remedy = "give --data HallusionBench.json, which says what was asked"
    if partial:
        raise ValueError(f"--allow-partial is for answers beside their data; {remedy}")
    rows = {name_of(answer.record): answer.record for answer in reversed(given)}
    items = read_items(reversed(rows.values()))
    pictured = sum(item.has_image for item in items)
    if rule == "parse_all" and pictured == len(items):
        raise ValueError(
            f"{path} has no items without a picture, so it is of the image-only form; score it with "
            f"--protocol parse_image_only, or {remedy}"
        )
    found, expected = (len(items), ITEMS) if rule == "parse_all" else (pictured, WITH_IMAGE)
    if found != expected:
        raise ValueError(f"{path} has {found:,} items of {expected:,} for {rule}; {remedy}")
    return items


def _is_wanted(answer: Answer, items: Mapping[str, Item], rule: str) -> bool:
    """Whether the rule takes the answer; an unknown one is refused later."""
    item = items.get(name_of(answer.record))
    return rule == "parse_all" or item is None or item.has_image


def _verdicts(given: Sequence[Answer], items: Mapping[str, Item], *, partial: bool) -> dict[str, Verdict]:
    """What a judge says of the answers, by the name of their items; empty where the file does not tell.

    Raises:
        ValueError: it tells of some only, or something else than a verdict, or of an answer two things.
    """
    found: dict[str, Verdict] = {}
    missing = []
    for answer in given:
        name, verdict = name_of(answer.record), verdict_of(answer.record)
        if verdict is None:
            missing.append(name)
        elif name in items and found.setdefault(name, verdict) != verdict:
            raise ValueError(f"{answer.where}: a second, different verdict on {name}; keep one")
    if found and missing and not partial:
        raise ValueError(
            f"{len(missing)} answers have no {CORRECTNESS}, which {len(found)} others have "
            f"({examples(missing)}); ask the judge again, or leave these out with --allow-partial"
        )
    return found


def _judged(
    given: Sequence[Answer], items: Mapping[str, Item], verdicts: Mapping[str, Verdict]
) -> ScoredFiles:
    """How often a judge says what; and kinds of errors, if it compared answers with those on figure 0."""
    same = {name_of(answer.record): is_same(answer.record) for answer in given}
    counts: dict[str, int] = {"right": 0, "wrong": 0, "unclear": 0} | Counter(verdicts.values())
    tables = [counts_table({JUDGE: counts})]
    document: dict[str, Any] = {"counts": counts}
    notes = ["official_judge has the verdicts of the file; no other protocol's figures compare with these"]
    compared = {name: each for name, each in same.items() if each is not None}
    uncompared = [name for name in verdicts if items[name].figure_id != "0" and name not in compared]
    if uncompared:
        notes.append(
            f"no diagnosis of errors: {len(uncompared)} answers have no {SAMENESS!r}, which says whether "
            "they are as the answer on figure 0"
        )
    else:
        kinds = diagnoses(items, verdicts, compared)
        document["diagnosis"] = kinds
        tables.append(counts_table(kinds))
    return ScoredFiles({JUDGE: document}, tables, notes)
