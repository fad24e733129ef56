"""Methods that act on the reasoning, or on the answer after it, in batches and beams."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerFast

import vlmfix
from tests.support import families
from tests.support.methods import UNLIKE, acting, values

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")
OPEN, CLOSE = 100, 101
WRITTEN = ((20, 21, CLOSE, 22, 23), (24, CLOSE, 25, 26, 27))
"""What the two sequences write; the answers of the second begin a token before those of the first."""
LAST_ROW, PROMPT, LOGITS = ("pai", "gift"), ("var", "vhr"), ("vcd", "deco")


class Thinking(families.Processor):
    """The tokens of the random models, of which two open and close a reasoning part."""

    def __init__(self) -> None:
        super().__init__()
        names = {families.IMAGE_TOKEN: "<image>", OPEN: "<think>", CLOSE: "</think>", 0: "<pad>"}
        words = {names.get(token, f"w{token}"): token for token in range(families.VOCABULARY)}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="w5")), pad_token="<pad>"
        )
        self.tokenizer.add_tokens(["<think>", "</think>"])


PROCESSOR = Thinking()


class Writes(LogitsProcessor):
    """Lets each sequence write its tokens."""

    def __init__(self, prompt: int, written: Sequence[Sequence[int]] = WRITTEN) -> None:
        self.prompt, self.written = prompt, torch.tensor(written)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt
        return torch.full_like(scores, -1e4).scatter(1, self.written[:, step : step + 1], 0.0)


def prompt(family: str, model: PreTrainedModel, *, opens: bool = True) -> dict[str, Tensor]:
    inputs = families.prompt(family, model, (1, 2))
    last = inputs["input_ids"].new_full((2, 1), OPEN if opens else 30)
    for name, added in (("input_ids", last), ("attention_mask", last // last)):
        inputs[name] = torch.cat([inputs[name], added], dim=1)
    if "mm_token_type_ids" in inputs:
        zeros = torch.zeros_like(last).to(inputs["mm_token_type_ids"].dtype)
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], zeros], dim=1)
    return inputs


def logits(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    name: str = "",
    act_on: str = "both",
    written: Sequence[Sequence[int]] = WRITTEN,
    **parameters: Any,
) -> Tensor:
    """Of all steps, `(steps, batch, vocabulary)`."""
    length = inputs["input_ids"].shape[1]
    kwargs: dict[str, Any] = {"max_new_tokens": 5, "logits_processor": [Writes(length, written)]}
    torch.manual_seed(0)
    if not name:
        return values(model, inputs, **kwargs)
    with dataclasses.replace(acting(name), act_on=act_on, **parameters)(model, PROCESSOR):
        return values(model, inputs, **kwargs)


@pytest.mark.parametrize("name", [*LAST_ROW, *PROMPT, *LOGITS])
@pytest.mark.parametrize("family", UNLIKE)
def test_each_sequence_by_its_own_part(name: str, family: str, model: PreTrainedModel) -> None:
    """The token that closes the reasoning is read in steps 3 and 2; the answer is predicted from there on."""
    inputs = prompt(family, model)
    stock, both = logits(model, inputs), logits(model, inputs, name)
    answer, reasoning = (logits(model, inputs, name, part) for part in ("answer", "reasoning"))
    for row, first in enumerate((3, 2)):
        torch.testing.assert_close(answer[:first, row], stock[:first, row], atol=1e-5, rtol=1e-5)
        assert (answer[first:, row] - stock[first:, row]).abs().nan_to_num().amax(dim=-1).gt(1e-4).all()
        torch.testing.assert_close(reasoning[:first, row], both[:first, row], atol=1e-5, rtol=1e-5)
        if name in LOGITS:
            torch.testing.assert_close(reasoning[first:, row], stock[first:, row], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(answer[first:, row], both[first:, row], atol=1e-5, rtol=1e-5)
        else:
            assert not torch.allclose(reasoning[first:, row], both[first:, row], atol=1e-4)


@pytest.mark.parametrize("name", ["pai", "var", "vcd"])
def test_prompts_that_open_no_reasoning(name: str, llava: PreTrainedModel) -> None:
    """All is answer, unless the model opens the reasoning by its first token."""
    inputs = prompt("llava", llava, opens=False)
    assert torch.equal(logits(llava, inputs, name, "answer"), logits(llava, inputs, name))
    torch.testing.assert_close(logits(llava, inputs, name, "reasoning")[0], logits(llava, inputs)[0])
    written = ((OPEN, 21, CLOSE, 22, 23),) * 2
    reasoning = logits(llava, inputs, name, "reasoning", written)
    stock = logits(llava, inputs, written=written)
    moved = (reasoning - stock).abs().nan_to_num().amax(dim=(1, 2)) > 1e-4
    assert moved.tolist()[:3] == [False, True, True]
    assert moved.tolist()[3:] == [name != "vcd"] * 2  # keys of edited steps stay


def test_with_a_gate_both_must_let_it_through(llava: PreTrainedModel) -> None:
    inputs = prompt("llava", llava)
    half = logits(llava, inputs, "vcd", "answer", gate="always:0.5")
    stock, always = logits(llava, inputs), logits(llava, inputs, "vcd", gate="always:0.5")
    torch.testing.assert_close(half[:2], stock[:2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half[3:], always[3:], atol=1e-5, rtol=1e-5)


def test_parts_follow_the_beams(llava: PreTrainedModel) -> None:
    """A beam goes on from another, whose part it takes over: greedy in each beam of one."""
    inputs = prompt("llava", llava)
    method = dataclasses.replace(acting("vcd"), act_on="answer")
    length = inputs["input_ids"].shape[1]
    written = [row for row in WRITTEN for _ in range(2)]
    kwargs: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 5, "do_sample": False}
    kwargs |= {"output_logits": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    with method(llava, PROCESSOR):
        beams = llava.generate(**inputs, **kwargs, logits_processor=[Writes(length, written)]).logits
    expected = logits(llava, inputs, "vcd", "answer")
    for step, found in enumerate(beams):
        torch.testing.assert_close(found[::2], expected[step], atol=1e-4, rtol=1e-4)


def test_what_cannot_act_on_a_part_is_refused(llava: PreTrainedModel) -> None:
    for name in ("fastv", "opera", "carve", "visionzip"):
        with pytest.raises(
            ValueError, match=r"holds for reasoning and answer alike.*leave out act_on='answer'"
        ):
            dataclasses.replace(acting(name), act_on="answer")
    with pytest.raises(ValueError, match="act_on is 'thought'; it must be one of both, reasoning, answer"):
        vlmfix.PAI(act_on="thought")
    method = vlmfix.PAI(act_on="answer")
    with pytest.raises(vlmfix.UnsupportedError, match="PAI with act_on='answer' needs the processor"):
        method(llava).__enter__()
    with pytest.raises(vlmfix.UnsupportedError, match="neither the tokenizer nor the chat template"):
        method(llava, families.PROCESSOR).__enter__()
    with (
        pytest.raises(vlmfix.UnsupportedError, match="the act_on of PAI does not follow; leave out"),
        method(llava, PROCESSOR),
    ):
        vlmfix.OPERA()(llava).__enter__()
    assert method.parameters["act_on"] == "answer"
    assert "act_on" not in vlmfix.PAI().parameters  # as in runs before there was such a thing
    with pytest.warns(vlmfix.InactiveMethodWarning, match="no answer had the part on which it acts"):
        logits(llava, prompt("llava", llava, opens=False), "vcd", "reasoning")
