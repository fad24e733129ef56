"""Questions of MME as they are found in files, with predictions or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmfix.evaluation.files.readers import examples, read_text
from vlmfix.evaluation.tasks.yes_no import yes_or_no
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict


@dataclass(frozen=True)
class Line:
    """One question about an image.

    Args:
        image: name of the picture's file; without its extension where questions lie in a file for each image.
        question: as the file has it.
        label: what is right.
        prediction: raw; None where the file has none.
        where: place in the file, in words.
    """

    image: str
    question: str
    label: Verdict
    prediction: str | None
    where: str


def read_subtask(path: Path) -> list[Line]:
    """The lines of a file of one subtask: image, question, label and maybe prediction, between tabs.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is of another form, or an image has not two questions with different labels.
    """
    found = []
    for where, cells in _rows(path):
        if len(cells) not in (3, 4):
            raise ValueError(
                f"{where}: {len(cells)} columns; there must be image, question, label and, in files of "
                "answers, prediction, with one tab between them; replace tabs in predictions by spaces"
            )
        prediction = cells[3] if len(cells) == 4 else None
        found.append(_line(where, cells[0], cells[1], cells[2], prediction))
    _check_pairs(found, path)
    return found


def read_images(paths: Sequence[Path], subtask: str) -> list[Line]:
    """The lines of files of one image each, which hold question and label between a tab.

    Raises:
        OSError: a file cannot be read.
        ValueError: as for `read_subtask`.
    """
    found = []
    for path in paths:
        for where, cells in _rows(path):
            if len(cells) != 2:
                raise ValueError(
                    f"{where}: {len(cells)} columns; there must be question and label, with a tab between"
                )
            found.append(_line(where, path.stem, cells[0], cells[1], None))
    _check_pairs(found, f"{subtask} of {paths[0].parent}")
    return found


def _rows(path: Path) -> list[tuple[str, list[str]]]:
    """The cells of each line that is not blank, with its place in words."""
    lines = enumerate(read_text(path).split("\n"), 1)
    return [
        (f"{path}, line {number}", line.removesuffix("\r").split("\t"))
        for number, line in lines
        if line.strip()
    ]


def _line(where: str, image: str, question: str, label: str, prediction: str | None) -> Line:
    if not image.strip() or not question.strip():
        raise ValueError(f"{where}: no {'question' if image.strip() else 'image'}; complete the line")
    return Line(image.strip(), question.strip(), yes_or_no(label, where), prediction, where)


def _check_pairs(lines: Sequence[Line], what: object) -> None:
    """Refuse images without exactly one question of either label, which no pairing could make good."""
    labels: dict[str, list[str]] = {}
    for line in lines:
        labels.setdefault(line.image, []).append(line.label)
    other = [image for image, each in labels.items() if len(each) != 2]
    if other:
        raise ValueError(
            f"{what}: {len(other)} of {len(labels)} images have not two questions ({examples(other)}); "
            "complete them"
        )
    same = [image for image, each in labels.items() if len(set(each)) == 1]
    if same:
        raise ValueError(
            f"{what}: {len(same)} of {len(labels)} images have the same label twice ({examples(same)}); one "
            "question of an image must be right with yes, the other with no"
        )
