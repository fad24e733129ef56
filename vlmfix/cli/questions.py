"""What `vlmfix generate` is to answer: a question for each picture, one about several, or a conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vlmfix.cli.pictures import named_pictures, picture_name
from vlmfix.evaluation.datasets import demo_scene, render
from vlmfix.evaluation.files.readers import read_json
from vlmfix.failures import printable
from vlmfix.inference.conversation import Conversation, read_messages

PROMPT = "Describe the image."


class Question(NamedTuple):
    """One question.

    Args:
        name: for people.
        source: what it came from, for JSON.
        conversation: what is asked; pictures may be paths.
    """

    name: str
    source: dict[str, Any]
    conversation: Conversation


def asked_questions(
    images: list[Path] | None,
    prompt: str | None,
    system: str | None,
    messages: Path | None,
    *,
    together: bool,
) -> list[Question]:
    """What the options ask, in order.

    Args:
        images: pictures or folders; None: the demo scene.
        prompt: what is asked about each; None: `PROMPT`.
        system: a system message before it; None: none.
        messages: a file with a conversation, in the place of all others.
        together: whether one question is about all pictures.

    Raises:
        ValueError: options do not go together, or the file has another form.
        FileNotFoundError: no such picture, folder or file.
    """
    if messages is not None:
        others = {"--image": images, "--prompt": prompt, "--system": system, "--together": together or None}
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise ValueError(f"--messages {messages} holds the whole conversation; leave {given[0]} out")
        return [_from_file(messages)]
    sources = named_pictures(images)
    text = PROMPT if prompt is None else prompt
    if together:
        if images is None:
            raise ValueError("--together needs the pictures of the question; name them with --image")
        names = [picture_name(source) for source in sources]
        asked = Conversation.of([_picture(source) for source in sources], text, system)
        return [Question(", ".join(names), {"images": names}, asked)]
    return [
        Question(name, {"image": name}, Conversation.of(_picture(source), text, system))
        for source in sources
        for name in [picture_name(source)]
    ]


def _from_file(path: Path) -> Question:
    name, content = printable(str(path)), read_json(path)
    try:
        conversation = read_messages(content, path.parent)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Question(name, {"messages": name}, conversation)


def _picture(source: Path | None) -> Path | Image.Image:
    return render(demo_scene()) if source is None else source
