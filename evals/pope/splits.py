"""Files of POPE answers that hold several splits, and which of their answers belong to which labels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmfix.evaluation.files.answers import ID_KEYS, IMAGE_KEYS, Answer, Answers, Keys
from vlmfix.evaluation.files.readers import examples, id_of, read_records, shown, text_of

from .chat import is_chat, with_ids
from .files import Label, labels_inside, read_answers, read_labels
from .pairing import Join
from .questions import asked_object

# In LLaVA's one answer file, ids of each split begin here.
_LLAVA_RANGE = 10_000_000
LLAVA_SPLITS = ("adversarial", "random", "popular")


_Question = tuple[int | str | None, str | None]  # id and asked object


@dataclass(frozen=True)
class Pair:
    """Answers and labels of one split.

    Args:
        name: of the split.
        paths: of the two files.
        answers: of the split alone.
        labels: of the split.
        join: what they must be joined by; None: whatever both have.
        notes: what a reader has to know.
    """

    name: str
    paths: tuple[str | Path, str | Path]
    answers: Answers
    labels: list[Label]
    join: Join | None = None
    notes: tuple[str, ...] = ()


def read_pairs(
    answers: Sequence[str | Path],
    labels: Sequence[str | Path],
    keys: Keys,
    questions: str | Path | None = None,
) -> list[Pair]:
    """The answers and labels of each split.

    Args:
        answers: files, one a split; or one of several splits, which its ids or a field tell apart.
        labels: files, one a split; none: the labels beside the answers.
        keys: of the records.
        questions: LLaVA's question file.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be, or files do not belong together.
    """
    read = [read_answers(path, keys) for path in answers]
    named = named_splits(read[0]) if len(read) == 1 else {}
    whole = named or (llava_splits(read[0], questions) if len(read) == 1 else {})
    if questions is not None and (named or not whole):
        raise ValueError(
            f"--questions is {str(questions)!r}, and the answers are not LLaVA's one file of several splits; "
            "leave it out"
        )
    if not labels:
        return _with_own_labels(answers, read, whole)
    known = [read_labels(path, keys) for path in labels]
    names = split_names(labels)
    if whole:
        places = [_split_of(path, answers[0], whole) for path in labels]
        given = [whole[place] for place in places]
        rest = [split for split in whole if split not in places]
        if rest:
            count = sum(len(whole[split]) for split in rest)
            note = f"{count} answers of {', '.join(rest)} left out; give the label files of these splits, too"
            given[0].notes.append(note)
        used = [answers[0]] * len(labels)
    elif len(read) == 1 and len(labels) > 1 and _repeats(read[0]):
        given, notes = repeated_splits(read[0], known)
        return [
            Pair(name, (answers[0], path), own, rows, None, tuple(notes))
            for name, path, own, rows in zip(names, labels, given, known, strict=True)
        ]
    elif len(answers) != len(labels):
        raise ValueError(
            f"{len(answers)} --answers for {len(labels)} --labels; give them in pairs, one a split"
        )
    else:
        given, used = read, [*answers]
    return [
        _pair(name, (own_path, path), own, rows)
        for name, own_path, path, own, rows in zip(names, used, labels, given, known, strict=True)
    ]


def _pair(name: str, paths: tuple[str | Path, str | Path], answers: Answers, labels: list[Label]) -> Pair:
    """A pair of files, of which both or neither are of conversations."""
    chat, asked_in_chat = is_chat(answers), any(label.conversation is not None for label in labels)
    if chat and asked_in_chat:
        return Pair(name, paths, answers.with_(with_ids(answers, labels)), labels, "id")
    if asked_in_chat:
        raise ValueError(
            f"{paths[1]} asks in conversations and the answers of {paths[0]} are no log of such; give the "
            "labels of single questions"
        )
    if chat:
        raise ValueError(
            f"{paths[0]} is a log of conversations and {paths[1]} asks single questions; give the list of "
            "POPE-chat, such as coco_pope_chat_random.json"
        )
    images = all(answer.image for answer in answers) and all(label.image for label in labels)
    by_question = bool(answers.layout.number and answers.layout.split and images)
    return Pair(name, paths, answers, labels, "question" if by_question and not answers[0].id else None)


def _with_own_labels(
    paths: Sequence[str | Path], read: Sequence[Answers], whole: dict[str, Answers]
) -> list[Pair]:
    splits = whole or dict(zip(split_names(paths), read, strict=True))
    used = [paths[0]] * len(splits) if whole else paths
    note = "labels are those beside the answers"
    return [
        Pair(name, (path, path), own, labels_inside(own), "position", (note,))
        for (name, own), path in zip(splits.items(), used, strict=True)
    ]


def named_splits(given: Answers) -> dict[str, Answers]:
    """Answers by the split that their file names; an answer of several splits, as VLMEvalKit lists them with
    commas, belongs to each. Empty where the file names none, or others than those of POPE."""
    found: dict[str, list[Answer]] = {split: [] for split in LLAVA_SPLITS}
    for answer in given:
        for split in (answer.split or "").split(","):
            if split.strip() not in found:
                return {}
            found[split.strip()].append(answer)
    return {split: given.with_(own) for split, own in found.items() if own}


def llava_splits(given: Answers, questions: str | Path | None = None) -> dict[str, Answers]:
    """LLaVA's answers by split, with the ids of POPE; empty where no ids are beyond the first of its ranges.

    Its ids begin at 1 (adversarial), 10000001 (random) and 20000001 (popular).

    Args:
        given: of its one file.
        questions: its question file (`llava_pope_test.jsonl`), which must name the same split for each id;
            images are from it.

    Raises:
        OSError: if the question file cannot be read.
        ValueError: if it lacks an id, or names another split.
    """
    ids = [answer.id for answer in given if isinstance(answer.id, int)]
    places = {id // _LLAVA_RANGE for id in ids}
    if len(ids) < len(given) or places == {0} or not places <= set(range(len(LLAVA_SPLITS))):
        return {}
    known = {}
    if questions is not None:
        for record in read_records(questions):
            known[id_of(record, ID_KEYS, "question id")] = record
    found: dict[str, list[Answer]] = {}
    for answer, id in zip(given, ids, strict=True):
        place, own = divmod(id, _LLAVA_RANGE)
        split, image = LLAVA_SPLITS[place], answer.image
        if questions is not None:
            if id not in known:
                raise ValueError(f"{answer.where}: question id {id} is not in {questions}; give its file")
            named = text_of(known[id], ("category",), "category")
            if named != split:
                raise ValueError(
                    f"{known[id].where}: the category of question id {id} is {shown(named)}, and by its "
                    f"number it is {split}; these are not LLaVA's questions"
                )
            image = text_of(known[id], IMAGE_KEYS, "image")
        found.setdefault(split, []).append(dataclasses.replace(answer, id=own, image=image))
    return {split: given.with_(found[split]) for split in LLAVA_SPLITS if split in found}


def repeated_splits(given: Answers, labels: Sequence[Sequence[Label]]) -> tuple[list[Answers], list[str]]:
    """Answers of several splits with the ids of each, as the task pope of lmms-eval writes them.

    A question that several splits share comes once for each, in the order of the splits.

    Args:
        given: with ids, questions and, for their order, running numbers.
        labels: of all splits.

    Returns:
        The answers to each of the splits, and what had to be told.

    Raises:
        ValueError: a question comes more or less often than there are splits that ask it.
    """
    wanted: dict[_Question, list[int]] = {}
    for split, own in enumerate(labels):
        for label in own:
            wanted.setdefault((label.id, label.object), []).append(split)
    rows: dict[_Question, list[tuple[int, Answer]]] = {}
    for place, answer in enumerate(given):
        number = answer.number if isinstance(answer.number, int) else place
        rows.setdefault((answer.id, asked_object(answer.question or "")), []).append((number, answer))
    odd = [key for key in {**rows, **wanted} if len(rows.get(key, ())) != len(wanted.get(key, ()))]
    if odd:
        raise ValueError(
            f"{given[0].where.rpartition(', ')[0]}: {len(odd)} questions come more or less often than there "
            f"are splits that ask them ({examples(f'{id}: {name}' for id, name in odd)}); give the --labels "
            "of all splits of the run, and all of its answers"
        )
    # Questions of one split alone show in which order the run asked the splits.
    alone = [(rows[key][0][0], splits[0]) for key, splits in wanted.items() if len(splits) == 1]
    order = list(dict.fromkeys(split for _, split in sorted(alone)))
    order += [split for split in range(len(labels)) if split not in order]
    found: list[list[tuple[int, Answer]]] = [[] for _ in labels]
    unlike = 0
    for key, splits in wanted.items():
        answered = sorted(rows[key], key=lambda row: row[0])
        unlike += len({answer.text for _, answer in answered}) > 1
        for split, row in zip(sorted(splits, key=order.index), answered, strict=True):
            found[split].append(row)
    notes = ["splits by the order of doc_id, as the answers do not name them"]
    if unlike:
        notes.append(
            f"{unlike} QUESTIONS THAT SEVERAL SPLITS SHARE HAVE DIFFERENT ANSWERS, whose splits are a guess"
        )
    return [given.with_(answer for _, answer in sorted(own, key=lambda row: row[0])) for own in found], notes


def split_names(paths: Sequence[str | Path]) -> list[str]:
    """Stems without what all POPE files share; repeated ones are numbered."""
    stems = [Path(path).stem.removeprefix("coco_pope_") for path in paths]
    seen: Counter[str] = Counter()
    names = []
    for stem in stems:
        seen[stem] += 1
        names.append(stem if seen[stem] == 1 else f"{stem} {seen[stem]}")
    return names


def _split_of(path: str | Path, answers: str | Path, whole: dict[str, Answers]) -> str:
    """The split of a label file, by its name."""
    split = next((each for each in whole if Path(path).stem.endswith(each)), None)
    if split is None:
        raise ValueError(
            f"{answers} holds the splits {', '.join(whole)}, and the name of {Path(path).name} ends in none "
            "of them; leave it out, or rename it, such as coco_pope_random.json"
        )
    return split


def _repeats(answers: Answers) -> bool:
    """Whether a file has running numbers, and the ids of its questions come again."""
    ids = [answer.id for answer in answers]
    return bool(answers.layout.number) and None not in ids and len(set(ids)) < len(ids)
