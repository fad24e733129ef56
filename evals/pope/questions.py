"""POPE (arXiv 2305.10355): question files in all published forms, and the builder that makes new ones."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmfix.atomic import write_text
from vlmfix.evaluation.datasets.layouts import SPLITS
from vlmfix.evaluation.datasets.synthetic.language import with_article
from vlmfix.evaluation.files.readers import (
    Record,
    examples,
    field_of,
    id_of,
    read_records,
    shown,
    text_of,
)
from vlmfix.evaluation.tasks.yes_no import yes_or_no


@dataclass(frozen=True)
class PopeQuestion:
    """One yes/no question.

    Args:
        id: unique within its file, used again in other splits.
        image: file name of the picture.
        text: the question, without suffix.
        label: "yes" or "no".
        object: what is asked about; "" if the question does not tell.
    """

    id: int
    image: str
    text: str
    label: str
    object: str


def read_pope(path: str | Path) -> list[PopeQuestion]:
    """Read a question file: JSON Lines or an array, with the keys of POPE or of POPEv2.

    Warns of questions that the file answers both with yes and with no.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks a field, its label is neither yes nor no, or an id comes twice.
    """
    questions: list[PopeQuestion] = []
    seen: set[int] = set()
    for number, record in enumerate(read_records(path, lists=("questions", "data")), 1):
        # POPEv2 has no ids
        id = number if "target_object" in record and "question_id" not in record else _number(record)
        if id in seen:
            raise ValueError(f"{record.where}: question_id {id} comes twice; ids must be unique in a file")
        seen.add(id)
        text = _filled(record, ("text", "question", "query"), "question")
        target = record.get("target_object")
        questions.append(
            PopeQuestion(
                id=id,
                image=_filled(record, ("image", "image_name"), "image"),
                text=text,
                label=yes_or_no(field_of(record, ("label", "answer"), "label"), record.where),
                object=target if isinstance(target, str) else asked_object(text) or "",
            )
        )
    labels: dict[tuple[str, str], set[str]] = {}
    for question in questions:
        labels.setdefault((question.image, question.text), set()).add(question.label)
    both = [f"{text} ({image})" for (image, text), found in labels.items() if len(found) > 1]
    if both:
        warnings.warn(
            f"{path}: {len(both)} questions are answered both yes and no: {examples(both)}", stacklevel=2
        )
    return questions


def build_pope(
    objects_by_image: Mapping[str, Sequence[str]],
    *,
    images: int = 500,
    per_image: int = 3,
    seed: int = 0,
    min_objects: int = 3,
) -> dict[str, list[PopeQuestion]]:
    """Make the three splits from what is in each image, as POPE's builder means to (its bugs left out).

    Images are drawn among those with enough objects. The i-th positive is the i-th object of the image; a
    negative follows that is not in the image and has not been asked of it: a random object, the most frequent
    one, or the one that most often comes together with that positive. Frequencies are of the drawn images.

    Args:
        objects_by_image: file name of each image to its objects, in the order in which they become positives.
        images: number of images to draw.
        per_image: positives of an image, and as many negatives.
        seed: of the draw and of the random negatives.
        min_objects: different objects that an image must have, at least `per_image`.

    Returns:
        The questions by split; the splits share images and positives. The order of images given is no matter.

    Raises:
        ValueError: a number out of its range, fewer images with enough objects than asked for, or an image
            with so many of all objects that negatives are lacking.
    """
    if images < 1 or per_image < 1 or min_objects < per_image:
        raise ValueError(
            f"images={images} and per_image={per_image} must be at least 1, min_objects={min_objects} at "
            "least per_image"
        )
    distinct = {name: list(dict.fromkeys(objects_by_image[name])) for name in sorted(objects_by_image)}
    rich = [name for name, objects in distinct.items() if len(objects) >= min_objects]
    if len(rich) < images:
        raise ValueError(
            f"{len(rich)} of {len(distinct)} images have at least {min_objects} objects, {images} are asked "
            "for; lower images or min_objects"
        )
    drawn = {name: distinct[name] for name in random.Random(seed).sample(rich, images)}
    frequency = Counter(each for objects in drawn.values() for each in objects)
    together: dict[str, Counter[str]] = {each: Counter() for each in frequency}
    for objects in drawn.values():
        for each in objects:
            together[each].update(other for other in objects if other != each)
    ranking = {
        "random": lambda positive: [],
        "popular": lambda positive: [each for each, _ in frequency.most_common()],
        "adversarial": lambda positive: [each for each, _ in together[positive].most_common()],
    }
    return {
        split: _questions(drawn, list(frequency), ranking[split], per_image, random.Random(f"{seed} {split}"))
        for split in SPLITS
    }


def write_pope(built: Mapping[str, Sequence[PopeQuestion]], folder: str | Path, data_set: str) -> list[Path]:
    """Write splits as JSON Lines in the form of the official files, `<data_set>_pope_<split>.json`.

    Returns:
        The files, each of which appears complete or not at all.
    """
    directory = Path(folder)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for split, questions in built.items():
        path = directory / f"{data_set}_pope_{split}.json"
        rows = [
            {"question_id": each.id, "image": each.image, "text": each.text, "label": each.label}
            for each in questions
        ]
        write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
        paths.append(path)
    return paths


def _questions(
    drawn: Mapping[str, list[str]],
    seen: list[str],
    ranked: Callable[[str], list[str]],
    per_image: int,
    rng: random.Random,
) -> list[PopeQuestion]:
    """The questions of a split; where `ranked` has no admissible negative, one of all is drawn."""
    questions: list[PopeQuestion] = []
    for image, objects in drawn.items():
        free = [each for each in seen if each not in objects]
        for positive in objects[:per_image]:
            if not free:
                raise ValueError(
                    f"{image} has {len(objects)} of all {len(seen)} objects, so {per_image} negatives are "
                    "lacking; lower per_image or give images with other objects"
                )
            negative = next((each for each in ranked(positive) if each in free), None) or rng.choice(free)
            free.remove(negative)
            for name, label in ((positive, "yes"), (negative, "no")):
                text = f"Is there {with_article(name)} in the image?"
                questions.append(PopeQuestion(len(questions) + 1, image, text, label, name))
    return questions


def _number(record: Record) -> int:
    id = id_of(record, ("question_id",))
    if not isinstance(id, int):
        raise ValueError(f"{record.where}: question_id is {shown(id)}; it must be a whole number")
    return id


def _filled(record: Record, names: tuple[str, ...], what: str) -> str:
    text = text_of(record, names, what)
    if not text or not text.strip():
        raise ValueError(f"{record.where}: the {what} is {shown(text)}; it must be a text")
    return text


def asked_object(question: str) -> str | None:
    """The object in a question of the form "Is there a dog in the image?"; None for other forms."""
    found = re.search(r"\bis there (?:an?|the) (.+?) in the \w+\?", question, re.IGNORECASE)
    return found[1].lower() if found else None
