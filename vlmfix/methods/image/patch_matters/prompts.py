"""What the language model is asked about captions."""

from __future__ import annotations

from collections.abc import Sequence

from vlmfix.methods.image.patch_matters.statements import Statement

SHORT = "Describe the image in one short sentence."
TRUTH = 'Is this true of the image: "{statement}" Answer yes or no.'


def grouping(said: Sequence[Statement]) -> str:
    """Which statements say the same, and which contradict each other."""
    lines = [f"{number}. (description {each.sample + 1}) {each.text}" for number, each in enumerate(said, 1)]
    return (
        "These sentences are from several descriptions of one picture:\n"
        + "\n".join(lines)
        + "\nWrite a line SAME: with the numbers of sentences of different descriptions that say the same, "
        "and a line CONFLICT: with the numbers of sentences about the same object that cannot all be true. "
        "Write one line for each such group, and nothing else."
    )


def fusing(captions: Sequence[str], kept: Sequence[str]) -> str:
    """One description from several, of what is reliable in them."""
    return (
        "These descriptions are of one picture:\n"
        + "\n".join(f"- {caption}" for caption in captions)
        + "\nOnly these statements about it are reliable:\n"
        + "\n".join(f"- {statement}" for statement in kept)
        + "\nWrite one fluent description that says all reliable statements and nothing else."
    )


def final(prompt: str, whole: str, parts: Sequence[tuple[str, str]]) -> str:
    """The last call.

    Args:
        prompt: what the user asked.
        whole: description of the picture.
        parts: box and description of each part.
    """
    return (
        f"A picture is described as a whole: {whole}\n"
        "Its parts, with left, top, right and bottom edge as shares of the picture, are described so:\n"
        + "\n".join(f"- {box}: {text}" for box, text in parts)
        + "\nWrite one description of the whole picture. Where they differ, believe the parts; say what "
        "several parts say once; leave out what the description of the whole claims and no part supports. "
        f"The user asked: {prompt}"
    )
