"""What follows a prompt, read side by side, is what whole passes without a cache give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import acting, with_flash_attention
from vlmfix.engine.capabilities import ChoosesTokens, RemembersSequences
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.state import CandidateBlock
from vlmfix.engine.step_decoder import PromptBatch, StepDecoder

SEQUENCES = 2
ALTERNATIVES = torch.tensor([[30, 31, 32], [40, 41, 42]])
AGAIN = torch.tensor([[7, 8, 9, 10], [20, 21, 22, 23]])

ANSWERS: list[Any] = [
    [[7], [20]],
    [[7, 8], [20, 21]],
    [[[7, 8, 30], [7, 8, 31], [7, 8, 32]], [[20, 21, 40], [20, 21, 41], [20, 21, 42]]],
    [[20, 21, 42, 50], [7, 8, 31, 51]],
    [[20, 21, 42, 50, 60], [20, 21, 42, 50, 61]],
    AGAIN.tolist(),
]
"""What the logits stand after that `read_on` returns."""


def read_on(step_decoder: StepDecoder) -> list[Tensor]:
    """Everything that a reader can do."""
    logits = [
        step_decoder.step(AGAIN[:, 0]),
        step_decoder.step(AGAIN[:, 1]),
        step_decoder.alternatives(ALTERNATIVES),
    ]
    step_decoder.keep(torch.tensor([1, 0]), torch.tensor([2, 1]))
    logits.append(step_decoder.step(torch.tensor([50, 51])))
    step_decoder.alternatives(ALTERNATIVES)
    step_decoder.follow(torch.tensor([0, 0]))
    logits.append(step_decoder.step(torch.tensor([60, 61])))
    step_decoder.alternatives(ALTERNATIVES)
    return [*logits, step_decoder.again(AGAIN)]


class Nothing(vlmfix.Method):
    """Attached, so that alternatives can be read, and without an effect."""

    edits: ClassVar = False


RUNNING = [
    acting(name)
    for name, cls in vlmfix.list_methods().items()
    if cls.attaches
    and not issubclass(cls, ChoosesTokens | RemembersSequences)
    and not acting(name).owns_logits
]
"""Methods that act where tokens are tried and taken back; those that remember tokens are refused there."""
RENUMBERED = [
    vlmfix.make_method(name, **acting(name).parameters | {"position_scheme": "renumber"})
    for name in ("fastv", "random_tokens")
]


def read(
    model: PreTrainedModel, inputs: dict[str, Tensor], see: Callable[[StepDecoder], Any], **kwargs: Any
) -> list[Any]:
    """Let `generate` prepare the prompts, and see what follows each."""
    seen = []

    def loop(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        prompts = PromptBatch(model, input_ids, model_kwargs, SEQUENCES)
        for sample in range(prompts.samples):
            with prompts.sample(sample) as step_decoder:
                seen.append(see(step_decoder))
        return input_ids

    kwargs = {"num_beams": SEQUENCES, "do_sample": False, "max_new_tokens": 4, **kwargs}
    model.generate(**inputs, custom_generate=loop, **kwargs)
    return seen


def behind(model: PreTrainedModel, inputs: dict[str, Tensor], answers: Any) -> Tensor:
    """Logits after a prompt and each of nested answers, from whole passes without a cache."""
    if isinstance(answers[0], list):
        return torch.stack([behind(model, inputs, each) for each in answers])
    new = torch.tensor([answers])
    ids = torch.cat([inputs["input_ids"], new], dim=1)
    given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        given["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new).int()], 1)
    with torch.no_grad():
        return model(**given, use_cache=False).logits[0, -1]


@pytest.mark.promises
def test_reading_on_equals_whole_passes(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 1, 0))
    with Nothing()(model):
        read_in_batch = read(model, inputs, read_on)
    for got, single in zip(read_in_batch, families.split(family, model, inputs), strict=True):
        for logits, answers in zip(got, ANSWERS, strict=True):
            torch.testing.assert_close(logits, behind(model, single, answers), atol=1e-5, rtol=1e-4)


def test_kernels_without_four_dimensional_masks(
    model: PreTrainedModel, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = families.prompt(family, model, (1, 1, 0))
    with Nothing()(model):
        expected = read(model, inputs, read_on)
    other = with_flash_attention(family, monkeypatch)
    with Nothing()(other):
        torch.testing.assert_close(read(other, inputs, read_on), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNNING + RENUMBERED, ids=lambda method: type(method).__name__)
def test_ways_of_reading_agree_under_every_method(llava: PreTrainedModel, method: vlmfix.Method) -> None:
    """Alternatives side by side and one by one, and answers in one pass and token by token."""

    def one_by_one(step_decoder: StepDecoder) -> list[Tensor]:
        step_decoder.one_by_one = True
        return read_on(step_decoder)

    def in_steps(step_decoder: StepDecoder) -> Tensor:
        return [step_decoder.step(tokens) for tokens in AGAIN.unbind(dim=1)][-1]

    inputs = families.prompt("llava", llava, (1, 0))
    with method(llava, families.PROCESSOR):
        together, apart, steps = (read(llava, inputs, way) for way in (read_on, one_by_one, in_steps))
    stock = read(llava, inputs, in_steps)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close([each[-1] for each in together], steps, atol=1e-5, rtol=1e-4)
    assert (steps[0] - stock[0]).abs().max() > 1e-4
    if method.needs_image:
        torch.testing.assert_close(steps[1], stock[1], atol=1e-5, rtol=1e-4)  # the prompt without an image


@pytest.mark.parametrize("method", RUNNING + RENUMBERED, ids=lambda method: type(method).__name__)
def test_what_a_method_keeps_tells_sequences_apart(llava: PreTrainedModel, method: vlmfix.Method) -> None:
    """Six sequences, a number that is none of the model's, so that nothing else counts as many."""
    inputs = families.prompt("llava", llava, (1, 0, 1))
    with method(llava, families.PROCESSOR):
        steps = read(llava, inputs, lambda step_decoder: step_decoder.step(AGAIN[:, 0]))
    assert [step.shape[0] for step in steps] == [SEQUENCES] * 3


def test_what_is_kept_of_no_sequence_is_refused(llava: PreTrainedModel) -> None:
    class Keeps(Nothing):
        def begin(self, context: DecodeContext) -> None:
            context.state[self] = torch.ones(5)

    with Keeps()(llava), pytest.raises(ValueError, match=r"\(5,\) in context.state.*count the 6 sequences"):
        read(llava, families.prompt("llava", llava, (1, 0, 1)), read_on)


def test_samples_see_a_run_of_their_own(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 1, 0))
    counts = (inputs["input_ids"] == families.IMAGE_TOKEN).sum(dim=1)
    method = vlmfix.VHR()
    with method(llava):
        runs: list[DecodeContext] = read(llava, inputs, lambda step_decoder: step_decoder.context)
    for context, count in zip(runs, counts.tolist(), strict=True):
        assert context.layout.image_tokens.sum(dim=1).tolist() == [count] * SEQUENCES
        factors, scaled = context.state[method.resolve(llava.config, None), 4]
        assert factors.shape[0] == scaled.shape[0] == SEQUENCES
        assert bool(scaled.any()) == (count > 0)


def test_what_a_sample_counts_is_counted_for_all(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    method = vlmfix.VHR()
    with method(llava):
        read(llava, inputs, lambda step_decoder: step_decoder.step(AGAIN[:, 0]))
    edit_stats = method.edit_stats()
    assert edit_stats.rows == edit_stats.rows_touched == 2 * SEQUENCES
    assert edit_stats.steps == edit_stats.steps_edited == 2 * SEQUENCES * 2
    assert [row.steps for row in method.latest_edit_stats()] == [2] * 2 * SEQUENCES
    assert not edit_stats.prefill_only


def test_an_error_leaves_no_block(llava: PreTrainedModel) -> None:
    runs = []

    def fail(step_decoder: StepDecoder) -> None:
        runs.append(step_decoder.context)
        handle = llava.get_decoder().layers[1].register_forward_hook(lambda *_: 1 / 0)
        try:
            step_decoder.step(AGAIN[:, 0])
        finally:
            handle.remove()

    with Nothing()(llava), pytest.raises(ZeroDivisionError):
        read(llava, families.prompt("llava", llava), fail)
    assert runs[0].engine.candidates is None


@pytest.mark.parametrize("kwargs", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_caches_that_are_refused(llava: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    with (
        Nothing()(llava),
        pytest.raises(vlmfix.UnsupportedError, match=r"use_cache=True|StaticCache is not supported"),
    ):
        read(llava, families.prompt("llava", llava), read_on, **kwargs)


def test_a_block_sees_the_prompt_and_what_stands_before_it() -> None:
    layout = PromptLayout(
        torch.zeros(2, 3, dtype=torch.bool), torch.tensor([[False, True, True], [True] * 3])
    )
    device = torch.device("cpu")
    chain, choice = CandidateBlock(1, 2), CandidateBlock(1, 2, alternatives=True)
    assert chain.places(device).tolist() == [2, 3]
    assert choice.places(device).tolist() == [2, 2]
    assert chain.attention_mask(layout, device)[:, 0].int().tolist() == [
        [[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]],
        [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]],
    ]
    assert choice.attention_mask(layout, device)[0, 0].int().tolist() == [
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 0, 1],
    ]
    assert CandidateBlock(1, 1).attention_mask(layout, device)[:, 0, 0].int().tolist() == [
        [0, 1, 1, 1, 1],
        [1] * 5,
    ]
    plain = layout.part(slice(1, 2))
    assert CandidateBlock(1, 1).attention_mask(plain, device) is None
    assert choice.attention_mask(plain, device).shape == (1, 1, 2, 6)
