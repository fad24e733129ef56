"""Answers in what `generate` returned: where each one ends, and what belongs to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vlmfix
from vlmfix.inference.output import Answer, read_answers

PAD, END, STOP = 0, 2, 9


class Words:
    """A processor whose tokens are numbers, of which those below 3 are special."""

    chat_template = None
    tokenizer = SimpleNamespace(get_added_vocab=dict, chat_template=None)

    def batch_decode(self, rows: Any, *, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(f" {token}" for token in row if token > 2) for row in rows]


def read(output: list[list[int]], mask: list[list[int]], ends: list[int] | None = None) -> list[Answer]:
    ids = None if ends is None else torch.tensor(ends)
    return read_answers(torch.tensor(output), torch.tensor(mask), ids, Words())


def test_an_answer_ends_with_its_end_token() -> None:
    output = [[5, 5, 6, 7, END, PAD], [PAD, 5, 6, 7, 8, 8], [5, 5, END, 7, END, 7]]
    mask = [[1, 1], [0, 1], [1, 1]]
    assert read(output, mask, [END]) == [
        Answer(" 6 7", (6, 7, END), 2, True),
        Answer(" 6 7 8 8", (6, 7, 8, 8), 1, False),
        Answer("", (END,), 2, True),
    ]


def test_any_of_several_tokens_ends_an_answer() -> None:
    assert read([[5, 6, STOP, 7], [5, 6, END, 7]], [[1], [1]], [END, STOP]) == [
        Answer(" 6 9", (6, STOP), 1, True),
        Answer(" 6", (6, END), 1, True),
    ]


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    assert read([[END, 5, 6, 7]], [[1, 1]], [END]) == [Answer(" 6 7", (6, 7), 2, False)]


def test_nothing_ends_an_answer_where_there_is_no_end_token() -> None:
    assert read([[5, END, 6]], [[1]]) == [Answer(" 6", (END, 6), 1, False)]


@pytest.mark.parametrize("length", [1, 3, 30])
def test_of_a_model(length: int) -> None:
    model, processor = vlmfix.load()
    prompts = ["USER: Hi ASSISTANT:", "USER: What is there? ASSISTANT:"]
    inputs = processor(text=prompts, padding=True, padding_side="left", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    ends = torch.tensor([model.generation_config.eos_token_id]).flatten()
    answers = read_answers(output, inputs["attention_mask"], ends, processor)
    for answer, mask in zip(answers, inputs["attention_mask"], strict=True):
        assert answer.ended == (answer.token_ids[-1] in ends)
        assert len(answer.token_ids) <= length
        assert answer.ended or len(answer.token_ids) == length
        assert answer.prompt_tokens == int(mask.sum())
        assert answer.text == processor.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
