"""Pictures that options name, and the answers about them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.markup import escape
from rich.table import Column, Table

import vlmfix
from vlmfix.cli.console import out
from vlmfix.cli.display import mark_differences, thumbnail
from vlmfix.failures import is_for_users, is_foreign, printable, words
from vlmfix.inference.conversation import Conversation, open_conversations
from vlmfix.inference.pictures import IMAGE_SUFFIXES, ImageLike, open_images


class Answered(NamedTuple):
    """The answers to a question by variant, what a method that asks several times found out of it, and the
    reasoning before answers."""

    texts: dict[str, str]
    refinements: list[vlmfix.MultiPassResult]
    reasoning: dict[str, str]


def is_readable(picture: ImageLike | None) -> bool:
    """Whether a picture can be opened; warns if not."""
    try:
        open_images(picture)
    except (OSError, ValueError) as error:
        warnings.warn(f"left out: {words(error)}", stacklevel=2)
        return False
    return True


def named_pictures(given: list[Path] | None) -> list[Path | None]:
    """The pictures to answer about; None is the demo scene."""
    if not given:
        return [None]
    found: list[Path | None] = []
    for path in given:
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                below = path / "images"
                hint = f"; give {str(below)!r}" if below.is_dir() else ""
                raise ValueError(f"no pictures in {str(path)!r} ({', '.join(sorted(IMAGE_SUFFIXES))}){hint}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no image file or folder {str(path)!r}; check the path")
    return found


def answers_or_errors(
    batch: Sequence[Conversation], answered: Callable[[Sequence[Conversation]], list[Answered]]
) -> Iterator[tuple[int, Conversation | None, Answered | Exception]]:
    """The number of each question of a batch, the question with its pictures opened, and its answers or why
    there are none: one cannot spoil those of others."""
    opened: list[tuple[int, Conversation]] = []
    for number, asked in enumerate(batch):
        try:
            opened.append((number, open_conversations([asked])[0]))
        except (OSError, ValueError) as error:
            yield number, None, error
    found: list[Answered | Exception] = []
    try:
        found += answered([asked for _, asked in opened]) if opened else []
    except ValueError as error:  # a picture that the model cannot take, such as one of a single line
        if len(opened) < 2 or not (is_for_users(error) or is_foreign(error)):
            raise
        for _, asked in opened:
            try:
                found += answered([asked])
            except ValueError as alone:
                found.append(alone)
        if len({words(each) if isinstance(each, Exception) else None for each in found}) == 1:
            raise  # it was not the picture
    for (number, asked), each in zip(opened, found, strict=True):
        yield number, asked, each


def picture_name(source: Path | None) -> str:
    return "demo scene" if source is None else printable(str(source))


def show(name: str, pictures: Sequence[ImageLike], answers: dict[str, str], *, alone: bool) -> None:
    """One answer as text; two side by side with the differing words marked."""
    for picture in pictures if alone and out.is_terminal else ():
        assert isinstance(picture, Image.Image)
        out.print(thumbnail(picture))
    if len(answers) == 1:
        text = next(iter(answers.values()))
        out.print(
            text if alone else f"{name}: {text}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        return
    table = Table(*(Column(name, ratio=1) for name in answers), title=escape(name), expand=True)
    table.add_row(*mark_differences(*answers.values()))
    out.print(table)
