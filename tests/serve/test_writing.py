"""Text from tokens: what is certain never changes, and in the end it is the text of all tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import vlmfix
from tests.inference.test_reasoning import CLOSES, MENTIONS, OPENS, marked
from vlmfix.serve.writing import Likely, Scored, Writing

WORDS = ["▁", "▁a", "▁cat", "cat", "s", ".", "▁▁", "\n", "é"]
BYTES = ["<0xE2>", "<0x82>", "<0xAC>", "<0xF0>"]


def sentencepiece() -> Any:
    """A tokenizer like that of LLaVA-1.5: spaces as marks, the first dropped, and single bytes."""
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate([*WORDS, *BYTES])}, unk_token="▁")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer), chat_template=None)


@pytest.fixture(scope="module")
def processors(loaded: tuple[Any, Any]) -> dict[str, Any]:
    return {
        "tiny-llava": loaded[1],
        "tiny-qwen2.5-vl": vlmfix.load("tiny-qwen2.5-vl")[1],
        "sentencepiece": sentencepiece(),
    }


def write(processor: Any, tokens: Sequence[int], stops: Sequence[str] = (), **settings: Any) -> Writing:
    """All tokens, while certain text only grows."""
    writing = Writing(processor, stops, **settings)
    before = ""
    for token in tokens:
        writing.add(token, Scored(Likely(token, -1.0)))
        assert writing.content.startswith(before)
        before = writing.content
        certain = "".join(piece.text for piece in writing.certain_pieces)
        assert certain.strip().startswith(before) or before.startswith(certain.strip())
    writing.close(ended=False)
    assert writing.content.startswith(before)
    assert "".join(piece.text for piece in writing.pieces).strip() == writing.content
    return writing


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl", "sentencepiece"])
def test_any_tokens_give_their_text(processors: dict[str, Any], name: str) -> None:
    tokenizer = processors[name].tokenizer
    # A byte that breaks off a run of bytes makes its decoder take back those before it.
    known = len(WORDS) if name == "sentencepiece" else len(tokenizer)
    draw = random.Random(0)
    for _ in range(150):
        tokens = [draw.randrange(known) for _ in range(draw.randrange(30))]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert write(processors[name], tokens).content == text.strip()


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl", "sentencepiece"])
def test_a_stop_text_cuts_wherever_it_begins(processors: dict[str, Any], name: str) -> None:
    tokenizer = processors[name].tokenizer
    # A byte that breaks off a run of bytes makes its decoder take back those before it.
    known = len(WORDS) if name == "sentencepiece" else len(tokenizer)
    draw = random.Random(1)
    cut = 0
    for _ in range(150):
        tokens = [draw.randrange(known) for _ in range(20)]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        begin = draw.randrange(len(text))
        stops = [text[begin : begin + draw.randrange(1, 9)], text[-2:], "never"]
        _, first = min((text.find(stop) + len(stop), text.find(stop)) for stop in stops[:2])
        writing = write(processors[name], tokens, stops)
        assert writing.content == text[:first].strip()
        assert writing.stopped
        cut += len(writing.pieces) < len(tokens)
    assert cut > 100


def test_half_a_character_waits_for_the_rest(processors: dict[str, Any]) -> None:
    processor = processors["sentencepiece"]
    writing = Writing(processor)
    seen = []
    for word in ("▁cat", "<0xE2>", "<0x82>", "<0xAC>", "s", "<0xF0>"):
        writing.add(processor.tokenizer.convert_tokens_to_ids(word), Scored(Likely(0, 0.0)))
        seen.append(writing.content)
    assert seen == ["cat", "cat", "cat", "cat€", "cat€s", "cat€s"]
    writing.close(ended=False)
    assert writing.content == "cat€s\ufffd"


@pytest.mark.parametrize("added", [(), ("<think>", "</think>")], ids=["text", "tokens"])
def test_reasoning_is_told_apart(added: Sequence[str]) -> None:
    def written(processor: Any, text: str, *, opens: bool, stops: Sequence[str] = ()) -> Writing:
        tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return write(processor, tokens, stops, opens_reasoning=opens)

    opened = written(marked(OPENS, added), "Let me see.\n</think>\n\nYes, there is.", opens=True)
    assert (opened.reasoning, opened.content) == ("Let me see.", "Yes, there is.")
    itself = written(marked(MENTIONS, added), "<think>\nNo? Yes.\n</think>Yes. No", opens=False, stops=["."])
    assert (itself.reasoning, itself.content) == ("No? Yes.", "Yes")
    unended = written(marked(OPENS, added), "Let me see. Yes", opens=True, stops=["Yes"])
    assert (unended.reasoning, unended.content) == ("Let me see. Yes", "")
    assert unended.reasoning_tokens == len(unended.tokens)
    plain = written(marked(CLOSES, added), "Yes, there is.", opens=False)
    assert (plain.reasoning, plain.content, plain.reasoning_tokens) == (None, "Yes, there is.", 0)
