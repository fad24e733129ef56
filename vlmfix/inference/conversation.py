"""Conversations: messages of a system, a user and an assistant, with pictures and videos between the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from PIL import Image

from vlmfix.inference.pictures import IMAGE_SUFFIXES, ImageLike, Images, listed, open_images

ROLES = ("system", "user", "assistant")
FORMS = (
    '{"type": "text", "text": TEXT}, {"type": "image", "image": PICTURE OR PATH} (or "path", "url" of a '
    'local file) or {"type": "video", "video": FRAMES}'
)
_SOURCES = {"image": ("image", "path", "url"), "video": ("video", "path")}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in a message.

    Args:
        image: itself, or its path.
    """

    image: ImageLike


@dataclass(frozen=True, eq=False)
class Video:
    """A video in a message.

    Args:
        frames: pictures or paths, in order.
    """

    frames: tuple[ImageLike, ...]


Part = str | Picture | Video
"""What a message is made of, in the order in which it is shown."""


@dataclass(frozen=True, eq=False)
class Message:
    """One message.

    Args:
        role: "system", "user" or "assistant".
        parts: texts, pictures and videos in order.
    """

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its texts, without pictures."""
        return " ".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, eq=False)
class Conversation:
    """What a model is asked: the last message is the user's, and it is the question.

    Args:
        messages: in order.
    """

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, images: Images, prompt: str, system: str | None = None) -> Self:
        """A single question with its pictures before the text.

        Args:
            images: of the question.
            prompt: the question.
            system: a system message before it; None: none.

        Raises:
            ValueError: `images` has another form, see `vlmfix.inference.pictures.listed`.
        """
        asked = Message("user", (*map(Picture, listed(images)), prompt))
        return cls((asked,) if system is None else (Message("system", (system,)), asked))

    @property
    def question(self) -> Message:
        """The last message."""
        return self.messages[-1]

    @property
    def pictures(self) -> list[ImageLike]:
        """All pictures in order, without videos."""
        return [part.image for part in self._parts() if isinstance(part, Picture)]

    @property
    def videos(self) -> list[tuple[ImageLike, ...]]:
        """The frames of all videos in order."""
        return [part.frames for part in self._parts() if isinstance(part, Video)]

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for those that show the same pictures and videos, as objects or paths, in the same order."""
        return tuple(
            (type(part).__name__, *map(_key, _images_of(part)))
            for part in self._parts()
            if not isinstance(part, str)
        )

    def asking(self, change: Callable[[str], str]) -> Self:
        """The same with `change` made to the last text of the question, or to "" after its pictures."""
        parts = list(self.question.parts)
        places = [place for place, part in enumerate(parts) if isinstance(part, str)]
        if places:
            text = parts[places[-1]]
            assert isinstance(text, str)
            parts[places[-1]] = change(text)
        elif added := change("").strip():
            parts.append(added)
        return replace(self, messages=(*self.messages[:-1], Message("user", tuple(parts))))

    def asking_instead(self, text: str) -> Self:
        """The same with the texts of the question replaced by one after its pictures."""
        shown = tuple(part for part in self.question.parts if not isinstance(part, str))
        return replace(self, messages=(*self.messages[:-1], Message("user", (*shown, text))))

    @property
    def asked_about(self) -> list[int]:
        """Which of the pictures the question belongs to: those of the last message of the user with any."""
        place, last = 0, list[int]()
        for message in self.messages:
            own = sum(isinstance(part, Picture) for part in message.parts)
            if own and message.role == "user":
                last = list(range(place, place + own))
            place += own
        return last

    def also_showing(self, image: ImageLike) -> Self:
        """The same with one more picture after the last that the question belongs to."""
        last, place = self.asked_about[-1], -1
        messages = []
        for message in self.messages:
            parts: list[Part] = []
            for part in message.parts:
                parts.append(part)
                place += isinstance(part, Picture)
                if isinstance(part, Picture) and place == last:
                    parts.append(Picture(image))
            messages.append(Message(message.role, tuple(parts)))
        return replace(self, messages=tuple(messages))

    def showing(self, change: Callable[[ImageLike], ImageLike]) -> Self:
        """The same with every picture and frame in the form that `change` gives it."""

        def changed(part: Part) -> Part:
            if isinstance(part, Picture):
                return Picture(change(part.image))
            return part if isinstance(part, str) else Video(tuple(map(change, part.frames)))

        return replace(
            self,
            messages=tuple(Message(each.role, tuple(map(changed, each.parts))) for each in self.messages),
        )

    def _parts(self) -> Iterator[Part]:
        return (part for message in self.messages for part in message.parts)


def open_conversations(conversations: Sequence[Conversation]) -> list[Conversation]:
    """The same with all pictures opened; one that comes several times is opened once.

    Raises:
        ValueError, FileNotFoundError: see `vlmfix.inference.pictures.open_images`.
    """
    opened: dict[Any, Image.Image] = {}

    def open_once(image: ImageLike) -> Image.Image:
        if _key(image) not in opened:
            [opened[_key(image)]] = open_images(image)
        return opened[_key(image)]

    return [each.showing(open_once) for each in conversations]


def read_messages(messages: Any, folder: Path | None = None) -> Conversation:
    """A conversation in the format of `apply_chat_template`.

    Args:
        messages: a list of `{"role": ..., "content": ...}`; a content is a text, or a list of items. See
            `FORMS`; a picture or a path in Python may also stand for itself.
        folder: to which relative paths belong; None: the one in which the process runs.

    Raises:
        ValueError: another form; the message names the place.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(
            f'messages is {_shown(messages)}; it must be a list of {{"role": ..., "content": ...}}'
        )
    read = tuple(_message(each, f"message {number}", folder) for number, each in enumerate(messages, 1))
    for number, each in enumerate(read, 1):
        if each.role == "system" and number > 1:
            raise ValueError(f"message {number} is of the system; only the first message may be")
    if read[-1].role != "user":
        raise ValueError(
            f"message {len(read)}, the last one, is of {read[-1].role!r}; end with the user's question"
        )
    return Conversation(read)


def _message(given: Any, place: str, folder: Path | None) -> Message:
    if not isinstance(given, Mapping) or set(given) != {"role", "content"}:
        found = (
            f"has the keys {sorted(map(str, given))}" if isinstance(given, Mapping) else f"is {_shown(given)}"
        )
        raise ValueError(f'{place} {found}; it must be {{"role": ..., "content": ...}}')
    role, content = given["role"], given["content"]
    if role not in ROLES:
        raise ValueError(f"the role of {place} is {_shown(role)}; use {', '.join(ROLES)}")
    if isinstance(content, str):
        return Message(role, (content,))
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise ValueError(
            f"the content of {place} is {_shown(content)}; it must be a text or a list of {FORMS}"
        )
    parts = [_part(each, f"item {number} of {place}", folder) for number, each in enumerate(content, 1)]
    if role == "system" and not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{place}, of the system, shows a picture; put pictures into messages of the user")
    return Message(role, tuple(parts))


def _part(given: Any, place: str, folder: Path | None) -> Part:
    if isinstance(given, Image.Image | Path):
        return Picture(_placed(given, folder))
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text" and set(given) == {"type", "text"} and isinstance(given["text"], str):
        return str(given["text"])
    allowed = _SOURCES.get(kind, ()) if isinstance(kind, str) else ()
    source = set(given) - {"type"} if allowed else set()
    if len(source) != 1 or not source <= set(allowed):
        raise ValueError(f"{place} is {_shown(given)}; it must be {FORMS}")
    value = given[source.pop()]
    if kind == "video":
        return Video(tuple(_placed(frame, folder) for frame in _frames(value, place, folder)))
    if not isinstance(value, ImageLike):
        raise ValueError(f"the picture in {place} is {_shown(value)}; it must be a PIL picture or a path")
    return Picture(_placed(value, folder))


def _frames(value: Any, place: str, folder: Path | None) -> Sequence[ImageLike]:
    if isinstance(value, str | Path) and Path(_placed_path(value, folder)).is_dir():
        inside = Path(_placed_path(value, folder)).iterdir()
        value = sorted(child for child in inside if child.suffix.lower() in IMAGE_SUFFIXES)
    is_listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not is_listed or not value or not all(isinstance(frame, ImageLike) for frame in value):
        raise ValueError(
            f"the video in {place} is {_shown(value)}; it must be a list of its frames, as pictures or "
            "paths, or a folder of them (video files are not decoded)"
        )
    return list(value)


def _placed(image: ImageLike, folder: Path | None) -> ImageLike:
    return image if isinstance(image, Image.Image) else _placed_path(image, folder)


def _placed_path(path: str | Path, folder: Path | None) -> str | Path:
    is_url = "://" in str(path) or str(path).startswith("data:")  # refused when it is opened
    return path if folder is None or is_url else folder / path


def _images_of(part: Picture | Video) -> tuple[ImageLike, ...]:
    return (part.image,) if isinstance(part, Picture) else part.frames


def _key(image: ImageLike) -> Any:
    return id(image) if isinstance(image, Image.Image) else str(image)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}..."
