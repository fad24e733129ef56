"""Reasoning before an answer: where it ends, by the marks of the tokenizer or the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

import vlmfix
from tests.inference.test_turns import CHATML, Processor
from vlmfix.inference.chat import find_question
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.output import read_answers
from vlmfix.inference.reasoning import split_reasoning
from vlmfix.inference.rendering import model_inputs, render_conversation
from vlmfix.models.reasoning_marks import ReasoningMarks

OPENS = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
CLOSES = OPENS.replace("<think>\n{% endif %}", "<think>\n\n</think>\n\n{% endif %}")
MENTIONS = CHATML.replace("{% for m", "{# <think></think> #}{% for m", 1)


def marked(template: str, added: Sequence[str] = ()) -> Any:
    processor: Any = Processor(template)
    processor.tokenizer.add_tokens(list(added))
    return processor


def read(processor: Any, written: str, *, prompt: str | None = None, ends: bool = True) -> Any:
    """The answer in a text that a model wrote after a prompt."""
    tokenizer = processor.tokenizer
    asked = render_conversation(Conversation.of(None, "Hi"), processor) if prompt is None else prompt
    begin = tokenizer(asked, add_special_tokens=False)["input_ids"]
    new = tokenizer(written, add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    output = torch.tensor([begin + new + [end] * ends])
    processor.batch_decode = tokenizer.batch_decode
    [answer] = read_answers(output, torch.ones(1, len(begin)), torch.tensor([end]), processor)
    return answer


@pytest.mark.parametrize("added", [(), ("<think>", "</think>")], ids=["text", "tokens"])
def test_the_answer_is_read_after_the_reasoning(added: Sequence[str]) -> None:
    opened = marked(OPENS, added)
    answer = read(opened, "Let me see.\n</think>\n\nYes, there is.")
    assert (answer.text, answer.reasoning, answer.reached) == ("Yes, there is.", "Let me see.", True)
    rest = opened.tokenizer.decode(answer.token_ids[answer.reasoning_tokens :], skip_special_tokens=True)
    assert rest.strip() == answer.text
    itself = read(marked(MENTIONS, added), "<think>\nNo? Yes.\n</think>\nYes")
    assert (itself.text.strip(), itself.reasoning) == ("Yes", "No? Yes.")
    only_closed = read(marked(MENTIONS, added), "No? Yes.</think>Yes")
    assert (only_closed.text, only_closed.reasoning) == ("Yes", "No? Yes.")


def test_reasoning_that_does_not_end_is_no_answer() -> None:
    for processor, written in ((marked(OPENS), "Yes, no, yes"), (marked(MENTIONS), "<think>Yes")):
        for ends in (False, True):  # also where the model stops in the middle of it
            answer = read(processor, written, ends=ends)
            assert (answer.text, answer.reached, answer.ended) == ("", False, ends)
            assert answer.reasoning == written.removeprefix("<think>")
            assert answer.reasoning_tokens == len(answer.token_ids) - ends


def test_without_reasoning_nothing_changes() -> None:
    for processor, written in (
        (marked(CLOSES, ("<think>", "</think>")), "Yes."),
        (marked(MENTIONS), "Yes."),
        (marked(MENTIONS), "The tag <think> opens it, </think> closes it."),
        (marked(CHATML), "<think>No</think>Yes"),  # of a model that knows no such marks
    ):
        answer = read(processor, written)
        assert (answer.text, answer.reasoning, answer.reasoning_tokens) == (written, None, 0)


def test_other_marks() -> None:
    answer = read(marked(CHATML, ("[THINK]", "[/THINK]")), "[THINK]No.[/THINK]Yes")
    assert (answer.text, answer.reasoning) == ("Yes", "No.")
    assert ReasoningMarks.of(marked(CHATML)) is None


def test_a_token_with_the_end_of_the_mark_and_more() -> None:
    class Tokenizer:
        pieces = ("<think>", "a", "</think", ">\n", "Yes")

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(self.pieces[token] for token in ids)

    class Own:
        tokenizer = Tokenizer()

    own: Any = Own()
    found = split_reasoning(range(5), ReasoningMarks("<think>", "</think>"), own, is_open=False)
    assert found == ("a", 3, "Yes", True)


def test_the_question_before_a_reasoning_part() -> None:
    processor = marked(OPENS)
    text = render_conversation(Conversation.of(None, "Is there a cat?", "Be brief."), processor)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert find_question(ids, -1, processor).text.strip() == "Is there a cat?"


class Writes(LogitsProcessor):
    """Lets a model write these tokens."""

    def __init__(self, prompt: int, ids: Sequence[int]) -> None:
        self.prompt, self.ids = prompt, ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -1e4)
        forced[:, self.ids[input_ids.shape[1] - self.prompt]] = 0
        return forced


def test_texts_of_a_thinking_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length limit counts the reasoning; an answer that is not reached is "", with a warning."""
    model, processor = vlmfix.load("tiny-qwen2.5-vl")
    own = processor.chat_template or processor.tokenizer.chat_template
    thinking = own.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert thinking != own
    monkeypatch.setattr(processor, "chat_template", thinking)
    asked = Conversation.of(None, "Is there a cat?")
    length = model_inputs([asked], processor)["input_ids"].shape[1]
    ids = processor.tokenizer("I look.\n</think>\n\nNo.")["input_ids"]
    ids.append(int(model.generation_config.eos_token_id))
    answers: list[Any] = []
    kwargs: dict[str, Any] = {"messages": asked, "on_answer": answers.append}
    text = vlmfix.generate(
        model, processor, max_new_tokens=len(ids), logits_processor=[Writes(length, ids)], **kwargs
    )
    assert text == "No."
    assert answers[0].reasoning == "I look."
    assert answers[0].token_ids == tuple(ids)
    with pytest.warns(UserWarning, match="1 of 1 answers were not reached: .* max_new_tokens=4; raise it"):
        text = vlmfix.generate(
            model, processor, max_new_tokens=4, logits_processor=[Writes(length, ids)], **kwargs
        )
    assert text == ""
    assert not answers[1].reached
