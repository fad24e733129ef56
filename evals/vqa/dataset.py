"""Open questions as samples: from files in the form of VQA v2, or from any data set of such questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData, HubRow, hub_samples
from vlmfix.evaluation.datasets.layouts import PARTS, is_official
from vlmfix.evaluation.files.readers import Record, examples, read_json, text_of
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol, Setting

from .questions import answer_texts, join_answers, read_by_id
from .scorer import M4C_ANSWERS, mode_named

_GQA, _IN = ("testdev", "val"), ("", "*/")

OCR_TOKENS = Setting(
    lambda value: value == "none", "none: text found in images is not offered", default="none"
)


def vqa_samples(folder: DataFolder, protocol: Protocol) -> list[Sample]:
    """Open questions in the form of VQA v2 with the answers of several people.

    Args:
        folder: with questions and answers, and with instances unless the questions are from VQA v2.
        protocol: of the task vqa.

    Returns:
        The samples in order of their ids, `vqa/<question id>`; target are the answers.

    Raises:
        FileNotFoundError: a file, or all pictures, are missing.
        ValueError: broken files, an id that comes twice, or a question without answers or image.
    """
    if protocol.scorer == "gqa":
        return gqa_samples(folder, protocol)
    asked, answered = folder.require("questions", "vqa"), folder.require("answers", "vqa")
    questions, answers = read_by_id(asked, "questions"), read_by_id(answered, "annotations")
    folder.record("questions", asked, len(questions))
    folder.record("answers", answered, len(answers))
    file_name = _file_names(folder, asked)
    return in_order(
        Sample(
            id=f"vqa/{question.id}",
            cluster=str(question.image_id),
            image=folder.image(file_name(question.image_id), "vqa"),
            prompt=protocol.ask(question.text),
            target=list(question.answers),
            meta={
                "image_id": question.image_id,
                "question": question.text,
                "question_type": question.question_type,
                "answer_type": question.answer_type,
            },
        )
        for question in join_answers(questions, answers)
    )


def gqa_samples(folder: DataFolder, protocol: Protocol) -> list[Sample]:
    """The balanced questions of GQA with their one answer (arXiv 1902.09506), `vqa/<question id>`.

    Raises:
        FileNotFoundError: the questions, or all pictures, are missing.
        ValueError: a question lacks a field.
    """
    path = folder.find_file(
        "vqa", *(f"{place}{part}_balanced_questions.json" for part in _GQA for place in _IN)
    )
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no object from question ids to questions, as GQA's files are")
    folder.record("questions", path, len(content))
    samples = []
    for id, value in content.items():
        record = Record(value if isinstance(value, dict) else {}, f"{path}, question {id}")
        question, answer, image = (
            text_of(record, (name,), name) or "" for name in ("question", "answer", "imageId")
        )
        kind = record.get("types", {}).get("structural") if isinstance(record.get("types"), dict) else None
        samples.append(
            Sample(
                id=f"vqa/{id}",
                cluster=image,
                image=folder.image(f"{image}.jpg", "vqa"),
                prompt=protocol.ask(question),
                target=[answer],
                meta={
                    "image_id": image,
                    "question": question,
                    "question_type": "",
                    "answer_type": str(kind or ""),
                },
            )
        )
    return in_order(samples)


def vqa_rows(data: HubData, protocol: Protocol, cache: Path) -> list[Sample]:
    """The rows of a data set as open questions, `vqa/<id>`; see `hub_samples`."""

    def sample(row: HubRow) -> Sample:
        meta = {
            "image_id": row.cluster,
            "question": row.question,
            "question_type": row.group,
            "answer_type": "",
        }
        answers = list(answer_texts(row.answer, row.where))
        return Sample(f"vqa/{row.id}", row.cluster, row.image, protocol.ask(row.question), answers, meta)

    return hub_samples(data, sample, cache)


def check_answers(samples: Sequence[Sample], protocol: Protocol) -> None:
    """Refuse questions without ten answers, or with several, where the scorer needs them so.

    Raises:
        ValueError: some have fewer or more.
    """
    several = [sample.id for sample in samples if len(sample.target) != 1]
    if several and protocol.scorer == "gqa":
        raise ValueError(
            f"{protocol.id} needs one answer to each question, and {len(several)} of {len(samples)} have "
            f"more ({examples(several)}); choose scorer=always"
        )
    odd = [sample.id for sample in samples if len(sample.target) != M4C_ANSWERS]
    if odd and mode_named(protocol.scorer) == "m4c":
        raise ValueError(
            f"{protocol.id} needs ten answers to each question, and {len(odd)} of {len(samples)} have "
            f"fewer or more ({examples(odd)}); choose scorer=always or scorer=official"
        )


def _file_names(folder: DataFolder, questions: Path) -> Callable[[int], str]:
    """How the picture of an image id is called."""
    if is_official(questions):
        part = next(part for part in PARTS if part in questions.name)
        return lambda image_id: f"COCO_{part}_{image_id:012d}.jpg"
    instances = folder.read_instances("vqa")

    def of_instances(image_id: int) -> str:
        if image_id not in instances.file_names:
            raise ValueError(
                f"{questions} asks about image {image_id}, which {folder.instances} does not list; give the "
                "instances of the same images"
            )
        return instances.file_names[image_id]

    return of_instances
