"""Prompts as text: rendering them, and finding the user's question among their tokens again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from vlmfix.errors import UnsupportedError
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.rendering import model_inputs, render_conversation
from vlmfix.inference.turns import Turns, chat_template

# Rendered in the place of the question, and of a system message, to learn what the chat template puts around
# them.
_MARKER = "vlmfixquestion"
_SYSTEM_MARKER = "vlmfixsystem"

_turns: WeakKeyDictionary[Any, tuple[Any, Turns | None]] = WeakKeyDictionary()

# Tokens that are decoded together, and those before them that may share a character or a space with them.
_BLOCK, _OVERLAP = 64, 8


def prepare(
    images: Sequence[Sequence[Image.Image]], prompts: Sequence[str], processor: ProcessorMixin
) -> BatchFeature:
    """Model inputs of a left-padded batch of single questions; see `vlmfix.inference.rendering.model_inputs`.

    Args:
        images: the pictures of each prompt.
        prompts: one text each, without a template.
        processor: of the model.

    Raises:
        ValueError: a prompt is no text or contains the placeholder of a picture, or the chat template fails.
    """
    asked = [Conversation.of(pictures, prompt) for pictures, prompt in zip(images, prompts, strict=True)]
    return model_inputs(asked, processor)


def render(prompt: str, num_images: int, processor: ProcessorMixin) -> str:
    """The text that the model reads for one user turn with its images in front.

    Raises:
        ValueError: the prompt is no text or holds the placeholder of a picture, or the chat template fails.
    """
    return render_conversation(Conversation.of([""] * num_images, prompt), processor)


@dataclass(frozen=True)
class SystemSlot:
    """What a chat template writes around a system message at the beginning, as tokens without the first, BOS.

    Args:
        before: before it.
        after: between it and the user's first words.
        without: before these if no system message is given; a template may put one of its own there.
        begin_token: BOS; None: the tokenizer has none.
    """

    before: list[int]
    after: list[int]
    without: list[int]
    begin_token: int | None

    @classmethod
    def of(cls, processor: ProcessorMixin) -> SystemSlot | None:
        """The slot of a processor's template; None: it has no template, or this takes no system message."""
        heads = [_head(None, processor)]
        for content in (_SYSTEM_MARKER, [{"type": "text", "text": _SYSTEM_MARKER}]):
            heads.append(_head(content, processor))
            if heads[-1] is not None and _SYSTEM_MARKER in heads[-1]:
                break
        if heads[0] is None or heads[-1] is None or _SYSTEM_MARKER not in heads[-1]:
            return None
        tokenizer = processor.tokenizer
        before, _, after = heads[-1].partition(_SYSTEM_MARKER)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after, heads[0])]
        begin = tokenizer.bos_token_id
        return cls(ids[0][_leading(begin, ids[0]) :], ids[1], ids[2][_leading(begin, ids[2]) :], begin)

    def put(self, message: Sequence[int], head: Sequence[int]) -> tuple[int, int, list[int]] | None:
        """Give a prompt a system message, in the place of one that it has.

        Args:
            message: in tokens.
            head: the prompt up to its first image, without padding.

        Returns:
            First token to leave out, the one after the last, and what to put there; None: the prompt does
            not begin as the template says.
        """
        first = _leading(self.begin_token, head)
        rest = list(head[first:])
        if rest[: len(self.without)] == self.without:
            return first, first + len(self.without), [*self.before, *message, *self.after]
        if rest[: len(self.before)] != self.before:
            return None
        for start in range(len(self.before), len(rest) - len(self.after) + 1):
            if rest[start : start + len(self.after)] == self.after:
                return first + len(self.before), first + start, list(message)
        return None


@dataclass(frozen=True)
class Question:
    """The last thing that the user said, among the tokens of a prompt.

    Args:
        text: the question.
        tokens: positions of its tokens in the prompt, with the characters of `text` that each covers.
    """

    text: str
    tokens: dict[int, tuple[int, int]]

    def tokens_of(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Positions of the tokens that overlap any of the character spans."""
        return [
            position
            for position, (start, end) in self.tokens.items()
            if any(start < stop and begin < end for begin, stop in spans)
        ]


def find_question(input_ids: Sequence[int], image_token: int, processor: ProcessorMixin) -> Question:
    """Find the last user turn: what lies between the texts that the chat template puts around it.

    Neither template texts, a system message, a prefilled answer, image tokens and special tokens nor white
    space are part of it. A prompt without any turns counts from its last special token before words on. Where
    role words are no special tokens, they count as turns where they alternate as the template has it, and as
    the user's words elsewhere.

    Args:
        input_ids: of one prompt, without padding.
        image_token: id of the image placeholder.
        processor: of the model.

    Raises:
        UnsupportedError: where the question stands cannot be known.
    """
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder) - {image_token}
    places = [place for place, token in enumerate(input_ids) if token != image_token]
    ids = [input_ids[place] for place in places]
    text, spans = text_and_spans(ids, processor)
    start, end = _turns_of(processor).last_user(text)
    question = ""
    tokens: dict[int, tuple[int, int]] = {}
    for place, token, (first, last) in zip(places, ids, spans, strict=True):
        piece = text[max(first, start) : min(last, end)]
        if token in special or not (piece if question else piece.strip()):
            continue
        if tokens and place > next(reversed(tokens)) + 1 and not question[-1:].isspace():
            question += " "  # an image stands between the words
        if piece.strip():
            tokens[place] = (len(question), len(question) + len(piece))
        question += piece
    return Question(question, tokens)


def question_start(input_ids: Sequence[int], image_token: int, processor: ProcessorMixin) -> int:
    """The first token of the last user's turn, where this begins after the last image; else the one after it.

    That turn, and what the template writes after it, is the text that asks; in a chat there may be earlier
    turns between it and the image.

    Args:
        input_ids: of one prompt, without padding.
        image_token: id of the image placeholder.
        processor: of the model.

    Raises:
        UnsupportedError: where the question stands cannot be known.
    """
    after = next((number for number, token in enumerate(reversed(input_ids)) if token == image_token), None)
    first = 0 if after is None else len(input_ids) - after
    turns = _turns_of(processor)
    if not turns.user.search(processor.tokenizer.decode(list(input_ids[first:]), skip_special_tokens=False)):
        return first
    places = [place for place, token in enumerate(input_ids) if token != image_token]
    text, spans = text_and_spans([input_ids[place] for place in places], processor)
    start, _ = turns.last_user(text)
    asked = (place for place, (_, end) in zip(places, spans, strict=True) if end > start and place >= first)
    return next(asked, first)


def _turns_of(processor: ProcessorMixin) -> Turns:
    """The turns of a processor's template, found once as long as this stays the same."""
    key = chat_template(processor), len(processor.tokenizer)
    if _turns.get(processor, (None, None))[0] != key:
        _turns[processor] = key, Turns.of(processor)
    turns = _turns[processor][1]
    if turns is None:
        raise UnsupportedError(
            "the user's question cannot be found in the prompt: the chat template renders no dialogue; give "
            "the processor one that does"
        )
    return turns


def text_and_spans(
    token_ids: Sequence[int], processor: ProcessorMixin, *, skip_special_tokens: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens, and which of its characters each covers: from the first to after the last."""

    def decode(start: int, stop: int) -> str:
        text: str = processor.tokenizer.decode(
            list(token_ids[start:stop]),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text

    def lengths(block: int) -> list[int]:
        """Of the text up to each token; in blocks, since each decoding reads all that it is given."""
        found = [0]
        for begin in range(0, len(token_ids), block):
            first = max(0, begin - _OVERLAP)
            before = found[-1] - len(decode(first, begin))
            found += [
                before + len(decode(first, stop + 1))
                for stop in range(begin, min(begin + block, len(token_ids)))
            ]
        return found

    text = decode(0, len(token_ids))
    ends = lengths(_BLOCK)
    if ends[-1] != len(text):  # a tokenizer that looks further back
        ends = lengths(max(1, len(token_ids)))
    return text, list(pairwise(accumulate(ends, max)))


def _head(system: Any, processor: ProcessorMixin) -> str | None:
    """What the template writes before the user's first words; None: it refuses this, or there is none.

    Args:
        system: content of a system message; None: no such message.
    """
    template = chat_template(processor)
    turns: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": [{"type": "text", "text": _MARKER}]})
    if template is None:
        return None
    try:
        text = processor.apply_chat_template(turns, chat_template=template, tokenize=False)
    except TemplateError:
        return None
    return text.partition(_MARKER)[0].rstrip()


def _leading(token: int | None, ids: Sequence[int]) -> int:
    """How often `ids` begin with `token`."""
    return next((count for count, each in enumerate(ids) if each != token), len(ids))
