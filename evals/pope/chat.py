"""POPE-chat: the six questions of an image in one conversation, as PAINT asks them (arXiv 2501.12206)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from vlmfix.evaluation.files.answers import Answer
from vlmfix.evaluation.files.pairs import asks

from .files import Label

_ASKED = re.compile(r"\bis there an? ", re.IGNORECASE)


def is_chat(answers: Sequence[Answer]) -> bool:
    """Whether answers were given in conversations: prompts hold earlier questions, too."""
    prompts = (answer.record.get("question") for answer in answers)
    return any(isinstance(prompt, str) and len(_ASKED.findall(prompt)) > 1 for prompt in prompts)


def with_ids(answers: Sequence[Answer], labels: Sequence[Label]) -> list[Answer]:
    """The answers of a log with the ids of their questions, which it does not have.

    Logs go conversation by conversation or, of several at a time, round by round; the questions tell of how
    many.

    Args:
        answers: of a log, which may end early.
        labels: of all conversations, in order.

    Raises:
        ValueError: the questions of the log come in neither order.
    """
    if len(answers) > len(labels):
        raise ValueError(
            f"{answers[0].where}: {len(answers)} answers for the {len(labels)} questions of conversations; "
            "give the labels of all of them"
        )
    conversations: dict[int | str | None, list[Label]] = {}
    for label in labels:
        conversations.setdefault(label.conversation, []).append(label)
    for together in range(1, len(conversations) + 1):
        order = _order(list(conversations.values()), together)
        if all(
            asks(answer.question or "", label.question or "")
            for answer, label in zip(answers, order, strict=False)
        ):
            order = _order(list(conversations.values()), together)
            return [
                dataclasses.replace(answer, id=label.id, image=label.image)
                for answer, label in zip(answers, order, strict=False)
            ]
    raise ValueError(
        f"{answers[0].where}: the questions come in another order than those of {labels[0].where}, whether "
        "by conversation or by round; give the labels of the same split"
    )


def _order(conversations: Sequence[Sequence[Label]], together: int) -> Iterator[Label]:
    """The order of questions where so many conversations are held at a time."""
    for start in range(0, len(conversations), together):
        batch = conversations[start : start + together]
        for turn in range(max(map(len, batch))):
            yield from (each[turn] for each in batch if turn < len(each))
