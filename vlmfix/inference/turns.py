"""Where a chat template puts the words of the user, and finding them in the text of a prompt again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from transformers import ProcessorMixin

from vlmfix.errors import UnsupportedError

_FIRST, _ANSWER, _LAST, _SYSTEM = "vlmfixfirst", "vlmfixanswer", "vlmfixlast", "vlmfixsystem"
_REMEDY = "render the prompt with processor.apply_chat_template"

_takes_parts: WeakKeyDictionary[Any, tuple[str | None, bool]] = WeakKeyDictionary()

# Role words at the beginning or end of prompts in forms of other models.
_OTHER_FORM = re.compile(
    r"\s*(user|human|question|instruction|system)\s*:|.*(\w+\s*:|\[/INST\])\s*$|.*<\|?im_start",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around the words of a user.

    Args:
        user: begins a user's turn.
        assistant: ends it and begins that of the assistant.
        user_end: what the template writes after a user's turn in itself.
        assistant_end: the same of an assistant's turn.
        system_end: between a system message and the user's words, where both stand in one turn; None: they
            do not.
        head: before the first user's words.
        special: special tokens.
        is_marked: whether turns begin with special tokens, which no words of a user can be.
    """

    user: re.Pattern[str]
    assistant: re.Pattern[str]
    user_end: str
    assistant_end: str
    system_end: str | None
    head: str
    special: re.Pattern[str]
    is_marked: bool

    @classmethod
    def of(cls, processor: ProcessorMixin) -> Self | None:
        """The turns of a processor's template; None: it renders no dialogue."""
        dialogue = [("user", _FIRST), ("assistant", _ANSWER), ("user", _LAST)]
        whole = conversation(dialogue, processor, answer=True)
        answered = conversation(dialogue[:2], processor)
        if whole is None or answered is None:
            return None
        found = re.fullmatch(f"(.*){_FIRST}(.*){_ANSWER}(.*){_LAST}(.*)", whole, re.DOTALL)
        if found is None:
            return None
        head, to_assistant, to_user, tail = found.groups()
        assistant_end = answered.partition(_ANSWER)[2].strip()
        opening = to_user.strip().removeprefix(assistant_end).strip() or to_user.strip()
        common = _common(to_assistant.strip(), tail.strip()) or to_assistant.strip()
        if not opening or not common:
            return None
        asked = conversation(dialogue[:1], processor) or ""
        tokens = [token for token in _special_tokens(processor) if token.strip()]
        special = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
        user = _pattern(opening, special)
        told = conversation([("system", _SYSTEM), ("user", _FIRST)], processor) or ""
        before, _, after = told.partition(_FIRST)[0].partition(_SYSTEM)
        in_turn = _SYSTEM in told and bool(user.search(before)) and not user.search(after)
        return cls(
            user=user,
            assistant=_pattern(common, special),
            user_end=asked.partition(_FIRST)[2].strip(),
            assistant_end=assistant_end,
            system_end=after.strip() if in_turn else None,
            head=special.sub("", head),
            special=special,
            is_marked=bool(special.search(opening)),
        )

    def last_user(self, text: str) -> tuple[int, int]:
        """Where the words of the last user's turn begin and end.

        A role word without special tokens counts as a turn where the turns alternate, and as the user's word
        elsewhere. A prompt without any turn counts from its last special token before words on.

        Raises:
            UnsupportedError: this cannot be known.
        """
        users = [(each.start(), each.end(), True) for each in self.user.finditer(text)]
        answers = [(each.start(), each.end(), False) for each in self.assistant.finditer(text)]
        if not users:
            if answers or _OTHER_FORM.match(self.special.sub("", text)):
                raise _unknown("it is in another form than that of the chat template")
            stops = [each.end() for each in self.special.finditer(text) if text[each.end() :].strip()]
            return max(stops, default=0), len(text)
        begin, inner = users[0][1], list[tuple[int, int, bool]]()
        told = self.special.sub("", text[: users[0][1]]).split() != self.head.split()
        for start, stop, is_user in sorted([*users[1:], *answers]):
            if start < begin:
                continue
            if not is_user:
                inner.append((start, stop, False))
            elif self.is_marked or (inner and text[:start].rstrip().endswith(self.assistant_end)):
                begin, inner = stop, []
            elif inner or (told and text[: users[0][0]].strip()):
                raise _unknown("its role words stand where the chat template has none")
        if not inner:
            end = len(text.rstrip())
            end = end - len(self.user_end) if text[begin:end].endswith(self.user_end) else end
        elif self.is_marked or len(inner) == 1:
            end = inner[0][0]
        elif not text[inner[-1][1] :].strip():
            end = inner[-1][0]
        else:
            raise _unknown("it has several role words of the assistant after the question")
        return self._after_system(text, begin, max(begin, end)), max(begin, end)

    def _after_system(self, text: str, begin: int, end: int) -> int:
        if self.system_end is None:
            return begin
        if self.system_end:
            place = text.find(self.system_end, begin, end)
            return begin if place < 0 else place + len(self.system_end)
        if re.search(r"\S\s*\n\s*\n\s*\S", self.special.sub("", text[begin:end])):
            raise _unknown("its chat template parts a system message from the question by a blank line alone")
        return begin


def conversation(
    turns: Sequence[tuple[str, str]], processor: ProcessorMixin, *, answer: bool = False
) -> str | None:
    """A dialogue as the processor's template renders it; None: it refuses this.

    Args:
        turns: role and words of each.
        processor: of the model; without a template, the form `USER: ... ASSISTANT:`.
        answer: whether an answer is to follow.
    """
    template = chat_template(processor)
    if template is None:
        texts = [f"{role.upper()}: {words}" for role, words in turns if role != "system"]
        return " ".join([*texts, "ASSISTANT:"] if answer else texts)
    as_parts = takes_parts(processor)
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": words}] if as_parts else words}
        for role, words in turns
    ]
    try:
        return processor.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answer
        )
    except (TemplateError, TypeError):
        return None


def chat_template(processor: ProcessorMixin) -> str | None:
    """The template of a processor, or of its tokenizer; None: it has none."""
    own: Any = processor  # typed as if it could hold several templates by name
    template: str | None = own.chat_template or own.tokenizer.chat_template
    return template


def takes_parts(processor: ProcessorMixin) -> bool:
    """Whether the processor's template takes content in parts, such as images, and no string alone."""
    template = chat_template(processor)
    known = _takes_parts.get(processor)
    if known is None or known[0] != template:
        known = _takes_parts[processor] = (template, _renders_parts(template, processor))
    return known[1]


def _renders_parts(template: str | None, processor: ProcessorMixin) -> bool:
    turns: list[Any] = [{"role": "user", "content": [{"type": "text", "text": _FIRST}]}]
    try:
        text = processor.apply_chat_template(turns, chat_template=template, tokenize=False)
    except (TemplateError, TypeError):
        return False
    return "'text'" not in text and _FIRST in text  # else it printed the parts as Python does


def _pattern(text: str, special: re.Pattern[str]) -> re.Pattern[str]:
    """`text` with any white space, which may be missing around special tokens, as tokenizers write it."""
    parts, last = [], 0
    for found in [*special.finditer(text), None]:
        words = text[last : found.start() if found else len(text)].split()
        parts += [r"\s+".join(map(re.escape, words))] if words else []
        if found:
            parts.append(re.escape(found.group()))
            last = found.end()
    return re.compile(r"(?<![^\s>\]])" * (special.match(text) is None) + r"\s*".join(parts))


def _common(one: str, other: str) -> str:
    """With what both begin."""
    unlike = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(unlike, min(len(one), len(other)))]


def _special_tokens(processor: ProcessorMixin) -> set[str]:
    tokenizer = processor.tokenizer
    return {str(token) for token in (*tokenizer.all_special_tokens, *tokenizer.added_tokens_decoder.values())}


def _unknown(why: str) -> UnsupportedError:
    return UnsupportedError(f"the user's question cannot be found in the prompt: {why}; {_REMEDY}")
