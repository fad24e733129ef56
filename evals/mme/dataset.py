"""Questions of MME as samples: from its files in either form, or about synthetic scenes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlmfix.evaluation.datasets.coco import read_scenes
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.synthetic.yes_no import paired_questions
from vlmfix.evaluation.files.hashing import digest
from vlmfix.evaluation.files.readers import sha256_of
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.inference.pictures import IMAGE_SUFFIXES

from .files import Line, read_images, read_subtask
from .subtasks import SUBSETS, missing

_QUESTIONS, _PICTURES = ("questions_answers_YN", ""), ("images", "")
"""Where the official release has them in the folder of a subtask."""


def mme_samples(folder: DataFolder, protocol: Protocol) -> list[Sample]:
    """The questions of the subtasks that the protocol names, two about each image.

    Args:
        folder: the official release, a folder with one file for each subtask, or synthetic scenes.
        protocol: of the task mme.

    Returns:
        The samples in order of their ids, `mme/<subtask>/<image>/<1 or 2>`.

    Raises:
        FileNotFoundError: none of the subtasks is there.
        ValueError: a file is broken, see `files.read_subtask`, or no folder was given.
    """
    wanted = SUBSETS[protocol.own["subtasks"]]
    if folder.is_synthetic:
        return in_order(_scene_samples(folder, protocol))
    if folder.root is None:
        raise ValueError("mme looks for its questions below a folder; give it with --data DIR")
    base = _base(folder.root, wanted)
    asked: dict[str, list[Line]] = {}
    for subtask in wanted:
        file, several = base / f"{subtask}.txt", _question_files(base / subtask)
        if file.is_file():
            asked[subtask] = read_subtask(file)
            folder.record(f"mme {subtask}", file, len(asked[subtask]))
        elif several:
            asked[subtask] = read_images(several, subtask)
            folder.used[f"mme {subtask}"] = {
                "file": str(several[0].parent),
                "sha256": digest([[path.name, sha256_of(path)] for path in several]),
                "rows": len(asked[subtask]),
            }
    if lacking := missing(wanted, asked):
        warnings.warn(
            f"{base} lacks the MME subtasks {', '.join(lacking)}; scores over them are called partial",
            stacklevel=2,
        )
    return in_order(samples_of(asked, protocol, base))


def samples_of(
    asked: Mapping[str, Sequence[Line]], protocol: Protocol, base: Path | None = None
) -> list[Sample]:
    """The lines of each subtask as samples, in the order of the lines.

    Args:
        asked: lines by subtask.
        protocol: of the task mme.
        base: folder with the pictures; None: the samples have none.
    """
    found = []
    for subtask, lines in asked.items():
        pictures = {} if base is None else _pictures(base, subtask)
        seen: set[str] = set()
        for line in lines:
            image = None if base is None else pictures.get(line.image, base / subtask / line.image)
            number = 2 if line.image in seen else 1
            meta = {"split": subtask, "image": line.image, "question": line.question}
            found.append(
                Sample(
                    id=f"mme/{subtask}/{line.image}/{number}",
                    cluster=f"{subtask}/{line.image}",
                    image=image,
                    prompt=protocol.ask(line.question),
                    target=line.label,
                    meta=meta,
                )
            )
            seen.add(line.image)
    return found


def _scene_samples(folder: DataFolder, protocol: Protocol) -> Iterator[Sample]:
    """Questions about synthetic scenes, which know nothing beyond the subset on hallucination."""
    folder.read_instances("mme")
    scenes = read_scenes(folder.require("instances", "mme"))
    for turn, (name, objects) in enumerate(scenes.items()):
        for question in paired_questions(objects, turn):
            yield Sample(
                id=f"mme/{question.kind}/{name}/{1 if question.answer == 'yes' else 2}",
                cluster=f"{question.kind}/{name}",
                image=folder.image(name, "mme"),
                prompt=protocol.ask(question.text),
                target=question.answer,
                meta={
                    "split": question.kind,
                    "image": name,
                    "question": question.text,
                    "object": question.object,
                },
            )


def _base(root: Path, wanted: Sequence[str]) -> Path:
    """The folder that has the subtasks: the root, or one at most two levels below it."""
    for pattern in ("", "*/", "*/*/"):
        for base in [root] if not pattern else sorted(root.glob(pattern)):
            if any((base / f"{name}.txt").is_file() or _question_files(base / name) for name in wanted):
                return base
    raise FileNotFoundError(
        f"{root} has no questions of MME, neither {wanted[0]}.txt nor a folder {wanted[0]} with a text file "
        "for each image; check --data"
    )


def _question_files(folder: Path) -> list[Path]:
    return next((found for name in _QUESTIONS if (found := sorted((folder / name).glob("*.txt")))), [])


def _pictures(base: Path, subtask: str) -> dict[str, Path]:
    """The pictures of a subtask by their names, with extension and without."""
    found: dict[str, Path] = {}
    for folder in [*(base / subtask / name for name in _PICTURES), *(base / name for name in _PICTURES)]:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(path.name, path)
                found.setdefault(path.stem, path)
    return found
