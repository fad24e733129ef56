"""Conversations as the text that a model reads, by the chat template of its processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import BatchFeature, ProcessorMixin

from vlmfix.inference.conversation import Conversation, Message, Picture, Video
from vlmfix.inference.image_processing import each_image_once
from vlmfix.inference.turns import chat_template, takes_parts

# How processors call the text that a template writes for a picture or a video: of Gemma the token before it.
_PLACEHOLDERS = {
    "picture": ("image_token", "boi_token"),
    "video": ("video_token",),
}


def model_inputs(
    conversations: Sequence[Conversation],
    processor: ProcessorMixin,
    arguments: Mapping[str, Any] | None = None,
) -> BatchFeature:
    """Model inputs of a left-padded batch.

    Args:
        conversations: with opened pictures.
        processor: of the model; its chat template is used, or the form `USER: <image> ... ASSISTANT:` without
            one.
        arguments: further ones for the processor.

    Raises:
        ValueError: a text is none or contains the placeholder of a picture, the chat template fails or leaves
            something out, or the processor refuses the pictures.
    """
    texts = [render_conversation(each, processor) for each in conversations]
    pictures = [picture for each in conversations for picture in each.pictures]
    videos = [list(frames) for each in conversations for frames in each.videos]
    visual: dict[str, Any] = dict(arguments or {})
    if videos:
        if getattr(processor, "video_processor", None) is None:
            raise ValueError(
                f"{type(processor).__name__} has no video processor, so that no video can be shown; install "
                "torchvision and load it again if the model takes videos, or show frames as pictures"
            )
        visual |= {"videos": videos, "do_sample_frames": False}
    try:
        with each_image_once(processor):
            return _processed(processor, texts, pictures, [each.pictures for each in conversations], visual)
    except ValueError as error:  # such as a picture 200 times as long as wide, for Qwen-VL
        raise ValueError(
            f"{type(processor).__name__} refuses the pictures or prompts ({' '.join(str(error).split())}); "
            "change or remove them"
        ) from error


def _processed(
    processor: Any, texts: list[str], pictures: list[Any], by_text: list[list[Any]], visual: dict[str, Any]
) -> BatchFeature:
    """What a processor makes of texts and their pictures, which most take in one list, and some (Gemma 3) in
    one for each text."""
    for images in (pictures or None, by_text):
        try:
            inputs: BatchFeature = processor(
                text=texts, images=images, padding=True, padding_side="left", return_tensors="pt", **visual
            )
            return inputs
        except ValueError:
            if images is by_text or not pictures or len(texts) == 1:
                raise
    raise AssertionError("one of the two forms returns or raises")


def render_conversation(conversation: Conversation, processor: ProcessorMixin) -> str:
    """The text that the model reads, up to where its answer begins.

    Where pictures stand in a message follows the template: that of Qwen keeps their order with the text, that
    of LLaVA shows them before it.

    Raises:
        ValueError: a text is none or holds the placeholder of a picture; the chat template fails, or leaves
            out a picture, a video or a text of the system or the user.
    """
    for message in conversation.messages:
        for part in message.parts:
            if not isinstance(part, Picture | Video):
                _check(part, processor)
    text = _rendered(conversation.messages, processor)
    for kind, shown in (("picture", conversation.pictures), ("video", conversation.videos)):
        names = [getattr(processor, name, None) for name in _PLACEHOLDERS[kind]]
        found = max((text.count(name) for name in names if isinstance(name, str) and name), default=0)
        if not found and shown and text != _rendered(_words_alone(conversation), processor):
            continue  # the template has a word of its own for it
        if found != len(shown):
            raise ValueError(
                f"the chat template of the checkpoint shows {found} of {len(shown)} {kind}s; put them into "
                "messages of the user, or use a model that takes them"
            )
    for message in conversation.messages:
        for part in message.parts:
            if message.role != "assistant" and isinstance(part, str) and part.strip() not in text:
                raise ValueError(
                    f"the chat template of the checkpoint leaves out a text of the {message.role} "
                    f"({part.strip()[:60]!r}); put it into the first question"
                )
    return text


def without_placeholders(text: str, processor: ProcessorMixin) -> str:
    """A text that a model wrote, without what would stand for a picture where it is put into a prompt."""
    for token in _shown_as(processor):
        text = text.replace(token, "")
    return text


def _shown_as(processor: ProcessorMixin) -> list[str]:
    """What stands for a picture or a video in the text of a prompt."""
    tokens = (getattr(processor, name, None) for name in ("image_token", "video_token"))
    return [token for token in tokens if isinstance(token, str) and token]


def _words_alone(conversation: Conversation) -> Sequence[Message]:
    return [
        Message(each.role, tuple(part for part in each.parts if not isinstance(part, Picture | Video)))
        for each in conversation.messages
    ]


def _rendered(messages: Sequence[Message], processor: ProcessorMixin) -> str:
    template = chat_template(processor)
    if template is None:
        texts = [
            words if each.role == "system" else f"{each.role.upper()}: {words}"
            for each in messages
            for words in [_as_string(each, processor)]
        ]
        return " ".join([*texts, "ASSISTANT:"])
    if not takes_parts(processor):  # a template of strings knows no images
        return _applied([_turn(each, _as_string(each, processor)) for each in messages], template, processor)
    turns = [_turn(each, [_as_item(part) for part in each.parts]) for each in messages]
    if messages[0].role != "system":
        return _applied(turns, template, processor)
    told = messages[0].text
    try:
        text = _applied(turns, template, processor)
    except ValueError:
        text = ""
    if told.strip() in text and text:
        return text
    # There are templates that take the user's words in parts, and those of the system as a string.
    return _applied([{"role": "system", "content": told}, *turns[1:]], template, processor)


def _turn(message: Message, content: Any) -> dict[str, Any]:
    return {"role": message.role, "content": content}


def _as_item(part: str | Picture | Video) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image" if isinstance(part, Picture) else "video"}


def _as_string(message: Message, processor: ProcessorMixin) -> str:
    own: Any = processor  # the placeholders are of the processors of image-text models alone
    return "".join(
        part
        if isinstance(part, str)
        else f"{own.image_token if isinstance(part, Picture) else own.video_token}\n"
        for part in message.parts
    )


def _applied(turns: list[dict[str, Any]], template: str, processor: ProcessorMixin) -> str:
    try:
        return processor.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program, and comes with the checkpoint
        advice = (
            "repair it"
            if not isinstance(error, TemplateError) or len(turns) == 1
            else ("give roles in the order that it wants, or repair it")
        )
        raise ValueError(
            f"the chat template of the checkpoint fails ({type(error).__name__}: {error}); {advice}"
        ) from error


def _check(text: object, processor: ProcessorMixin) -> None:
    """Refuse what no tokenizer takes, and what would be read as a picture that is not there."""
    if not isinstance(text, str):
        raise ValueError(f"the prompt is {text!r}; it must be a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start + 1} of the prompt is a lone surrogate ({text[error.start]!r}), which "
            "is no text; remove it"
        ) from None
    for token in _shown_as(processor):
        if token in text:
            raise ValueError(
                f"the prompt contains {token!r}, which stands for a picture; leave it out, and give the "
                "picture itself"
            )
