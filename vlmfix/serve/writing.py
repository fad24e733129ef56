"""The text of an answer while its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from transformers import ProcessorMixin

from vlmfix.inference.reasoning import split_reasoning
from vlmfix.models.reasoning_marks import ReasoningMarks

_UNFINISHED = "\ufffd"
# Tokens in which the mark at the end of a reasoning part must be found.
_TAIL = 16


@dataclass(frozen=True)
class Likely:
    """A token with its probability.

    Args:
        token_id: in the vocabulary.
        logprob: natural logarithm.
    """

    token_id: int
    logprob: float


@dataclass(frozen=True)
class Scored:
    """The token that was chosen in a step, and the likeliest ones.

    Args:
        chosen: it.
        likeliest: in order.
    """

    chosen: Likely
    likeliest: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A token of an answer as text.

    Args:
        text: what it adds to the text; "" where it is only a part of a character.
        scored: its probabilities, where they are wanted.
        alternatives: texts of the likeliest tokens.
    """

    text: str
    scored: Scored | None = None
    alternatives: tuple[str, ...] = ()


class Writing:
    """What a model writes, from tokens to certain text.

    Text is certain when no later token can change it: characters are whole, white space at the end and what
    may be the beginning of a stop text are held back, and so is everything while a reasoning part may follow.

    Args:
        processor: of the model.
        stops: texts before the first of which the answer ends.
        opens_reasoning: whether the prompt opened a reasoning part.
    """

    def __init__(
        self, processor: ProcessorMixin, stops: Sequence[str] = (), *, opens_reasoning: bool = False
    ) -> None:
        self.tokens: list[int] = []
        self.reasoning: str | None = None
        self.reasoning_tokens = 0
        self.stopped = False
        self.pieces: list[Piece] = []
        self._processor = processor
        self._tokenizer: Any = processor.tokenizer
        self._stops = tuple(stops)
        self._opens = opens_reasoning
        self._marks = ReasoningMarks.of(processor)
        self._waits = self._marks is not None
        self._answer: list[int] = []  # tokens after the reasoning part
        self._scores: list[Scored | None] = []
        self._text = ""
        self._skipped = 0  # characters of the answer's tokens that belong to the mark before it
        self._first = self._read = 0  # tokens that are decoded anew for each new one
        self._closed = False

    @property
    def content(self) -> str:
        """The text of the answer as far as it is certain."""
        return self._text[: self._certain].strip()

    @property
    def certain_pieces(self) -> list[Piece]:
        """The tokens of that text."""
        if self._closed:
            return self.pieces
        ends = accumulate(len(piece.text) for piece in self.pieces)
        return [piece for piece, end in zip(self.pieces, ends, strict=True) if end <= self._certain]

    @property
    def _certain(self) -> int:
        if self.stopped or self._closed:
            return len(self._text)
        return len(self._text) - max((_overlap(self._text, stop) for stop in self._stops), default=0)

    def add(self, token: int, scored: Scored | None = None) -> None:
        """Take the next token."""
        self.tokens.append(token)
        self._scores.append(scored)
        if not self._waits:
            self._add_to_answer(token, scored)
        elif self._marks is not None and self._marks.end in self._decode(self.tokens[-_TAIL:], special=True):
            self._end_reasoning()

    def close(self, *, ended: bool) -> None:
        """There are no more tokens.

        Args:
            ended: whether the last one ended the answer.
        """
        if self._closed:
            return
        if self._waits:
            self._end_reasoning(1 if ended else 0)
        if not self.stopped:
            self._extend(self._new_text())
        self._closed = True
        self._cut_pieces()

    def close_with(self, text: str) -> None:
        """The answer is a text that the model did not write token by token."""
        self.tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        self._extend(text)
        self._closed = True

    def _end_reasoning(self, after: int = 0) -> None:
        """Split what was written; the last `after` tokens are not part of the reasoning."""
        assert self._marks is not None
        written = self.tokens[: len(self.tokens) - after]
        found = split_reasoning(written, self._marks, self._processor, is_open=self._opens)
        self._waits = False
        if found is not None:
            self.reasoning, self.reasoning_tokens = found.reasoning, found.tokens
            if not found.is_closed:
                self.reasoning_tokens = len(self.tokens)
        start = self.reasoning_tokens
        if found is not None and found.is_closed:
            self._skipped = len(self._decode(self.tokens[start:])) - len(found.answer)
        for token, scored in zip(self.tokens[start:], self._scores[start:], strict=True):
            self._add_to_answer(token, scored)

    def _add_to_answer(self, token: int, scored: Scored | None) -> None:
        self._answer.append(token)
        if self.stopped:
            return
        begin = len(self._text)
        new = self._new_text()
        if new and not new.endswith(_UNFINISHED):
            self._first, self._read = self._read, len(self._answer)
            self._extend(new)
        self.pieces.append(Piece(self._text[begin:], scored, self._alternatives(scored)))

    def _new_text(self) -> str:
        """What the tokens add that are not part of the text yet, a character that is not whole included."""
        before = len(self._decode(self._answer[self._first : self._read]))
        if self._first == 0:
            before = max(before, self._skipped)
        return self._decode(self._answer[self._first :])[before:]

    def _alternatives(self, scored: Scored | None) -> tuple[str, ...]:
        """What the likeliest tokens would have added."""
        if scored is None:
            return ()
        tail = self._answer[-5:-1]
        start = len(self._decode(tail))
        return tuple(self._decode([*tail, each.token_id])[start:] for each in scored.likeliest)

    def _extend(self, text: str) -> None:
        """Add text, and cut it before the stop text that is complete first."""
        before = len(self._text)
        self._text += text
        found = [
            (place + len(stop), place)
            for stop in self._stops
            if (place := self._text.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if found:
            self._text = self._text[: min(found)[1]]
            self.stopped = True

    def _cut_pieces(self) -> None:
        """Leave out the pieces after the text, and the end of the last one; what came late is of the last."""
        kept, length = list[Piece](), 0
        for piece in self.pieces:
            text = piece.text[: len(self._text) - length]
            if not text and piece.text:
                break
            kept.append(Piece(text, piece.scored, piece.alternatives))
            length += len(text)
        while kept and not kept[-1].text:
            kept.pop()
        if kept and length < len(self._text):
            last = kept.pop()
            kept.append(Piece(last.text + self._text[length:], last.scored, last.alternatives))
        self.pieces = kept

    def _decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=not special)
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may begin a stop text."""
    return next(
        (size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0
    )
