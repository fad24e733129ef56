"""Tests of batches in which what is left of one goes on with the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, PreTrainedModel

import vlmfix
from tests.engine.test_leaving_rows import STAY
from tests.support import families
from tests.support.did import assert_did_the_same
from tests.support.methods import ATTACHED, METHODS, acting, in_turn
from tests.support.names import FAMILIES, QUICK
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.engine.entering_rows import Stream

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")

TOKENS, END = 12, 2
WITHOUT_A_LOOP = [name for name in ATTACHED if not issubclass(METHODS[name], ChoosesTokens)]
# Of three batches: images of each prompt, and tokens of each answer.
IMAGES = ((1, 0, 1, 1), (1, 1, 0, 1), (0, 1, 1, 1))
LENGTHS = ((5, 7, 10, 4), (12, 4, 6, 8), (3, 11, 5, 5))


class Ends(LogitsProcessor):
    """Lets each sequence end at a step of its own."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths, self.step = torch.tensor(lengths), 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.step += 1
        ends = torch.where(self.lengths == self.step, torch.inf, -torch.inf)
        return scores.index_copy(1, torch.tensor([END]), ends[:, None])

    def keep_rows(self, rows: torch.Tensor) -> None:
        self.lengths = self.lengths[rows]

    def take_in(self, other: Ends) -> None:
        self.lengths = torch.cat([self.lengths, other.lengths])


def asked(family: str, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Arguments of `generate` for each batch, all of one length."""
    prompts = [families.prompt(family, model, images) for images in IMAGES]
    longest = max(each["input_ids"].shape[1] for each in prompts)
    decoding = {"max_new_tokens": TOKENS, "do_sample": False, "num_beams": 1, "eos_token_id": END}
    return [padded(each, longest) | decoding for each in prompts]


def padded(inputs: dict[str, Any], length: int) -> dict[str, Any]:
    shape = inputs["input_ids"].shape
    missing = length - shape[1]
    return {
        name: torch.nn.functional.pad(value, (missing, 0))
        if isinstance(value, torch.Tensor) and value.shape == shape
        else value
        for name, value in inputs.items()
    }


def one_by_one(model: PreTrainedModel, methods: list[vlmfix.Method], batches: list[dict[str, Any]]) -> Any:
    """Answers, and what the first method did in each sequence."""
    tokens, latest = [], []
    with attached(model, methods):
        for inputs, lengths in zip(batches, LENGTHS, strict=True):
            given = inputs | decoding_of(methods)
            output = model.generate(**given, logits_processor=[Ends(lengths)])
            tokens.append(answers(output[:, inputs["input_ids"].shape[1] :]))
            latest.append([each.latest_edit_stats() for each in methods])
    return tokens, latest


def streamed(model: PreTrainedModel, methods: list[vlmfix.Method], batches: list[dict[str, Any]]) -> Any:
    """The same of a stream, with the number of rows of each pass over new tokens alone."""
    found: dict[int, Any] = {}
    rows: list[int] = []
    numbers: dict[Any, int] = {}

    def see(module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["inputs_embeds"].shape[1] == 1:
            rows.append(len(given["inputs_embeds"]))

    def take(ended: Any) -> None:
        for prompts in ended:
            tokens = answers(prompts.answers)
            found[numbers[prompts]] = tokens, [each.latest_edit_stats() for each in methods]

    handle = model.get_decoder().register_forward_pre_hook(see, with_kwargs=True)
    try:
        with attached(model, methods):
            stream = Stream(model, 4)
            for number, (inputs, lengths) in enumerate(zip(batches, LENGTHS, strict=True)):
                given = inputs | decoding_of(methods)
                numbers[stream.begin(**given, logits_processor=[Ends(lengths)])] = number
                take(stream.advance())
            take(stream.finish())
    finally:
        handle.remove()
    assert sorted(found) == [0, 1, 2]
    tokens, latest = zip(*(found[number] for number in range(3)), strict=True)
    return list(tokens), list(latest), rows


@contextmanager
def attached(model: PreTrainedModel, methods: list[vlmfix.Method]) -> Iterator[None]:
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method(model, families.PROCESSOR))
        yield


def decoding_of(methods: list[vlmfix.Method]) -> dict[str, Any]:
    return {name: value for method in methods for name, value in method.decoding({}).items()}


def answers(tokens: torch.Tensor) -> list[list[int]]:
    """Up to the end of each."""
    return [row[: row.index(END) + 1] if END in row else row for row in tokens.tolist()]


# What the model reads in each step of three batches that join: the first one until half of it is left, the
# second one, both, the third one, and all that is left.
JOINED = [4, 4, 4, 3, 4, 4, 4, 3, 3, 2, 4, 3, 4, 4, 4, 3, 1, 1, 1, 3, 3, 2, 1]
# Keep of their prompts what has no common form.
APART = {"dola", "sparsevlm"}


@pytest.mark.promises
@pytest.mark.parametrize(("name", "family"), in_turn(WITHOUT_A_LOOP))
def test_a_method_does_the_same_in_a_stream(name: str, family: str, model: PreTrainedModel) -> None:
    batches = asked(family, model)
    before, after = acting(name), acting(name)
    tokens, latest = one_by_one(model, [before], batches)
    found, did, rows = streamed(model, [after], batches)
    assert found == tokens
    assert [[row[:5] for row in one[0]] for one in did] == [[row[:5] for row in one[0]] for one in latest]
    assert_did_the_same(after, before, but={"sinks"})  # of the prompts that ended last
    if name in STAY:
        assert len(rows) >= 30
    elif name in APART:
        assert rows[-1] == 1 < 23 < len(rows)
    else:
        assert rows[-7:] == JOINED[-7:]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_model_writes_the_same_in_a_stream(family: str, model: PreTrainedModel) -> None:
    batches = asked(family, model)
    before = families.fingerprint(model)
    tokens, _ = one_by_one(model, [], batches)
    found, _, rows = streamed(model, [], batches)
    assert found == tokens
    assert rows == JOINED
    assert families.fingerprint(model) == before


@pytest.mark.parametrize("names", [("var", "vcd"), ("fastv", "vhr"), ("gift", "deco")])
def test_methods_together_do_the_same_in_a_stream(
    names: tuple[str, str], models: dict[str, PreTrainedModel]
) -> None:
    batches = asked(QUICK, models[QUICK])
    before, after = ([acting(name) for name in names] for _ in range(2))
    tokens, latest = one_by_one(models[QUICK], before, batches)
    found, did, _ = streamed(models[QUICK], after, batches)
    assert found == tokens
    assert [[row[:5] for each in one for row in each] for one in did] == [
        [row[:5] for each in one for row in each] for one in latest
    ]
    for one, other in zip(after, before, strict=True):
        assert_did_the_same(one, other)


@pytest.mark.parametrize("gate", ["entropy:0.3", "image_mass:below:0.5"])
def test_gates_stay_with_their_sequences(gate: str, models: dict[str, PreTrainedModel]) -> None:
    batches = asked(QUICK, models[QUICK])
    before, after = (vlmfix.PAI(alpha=1.0, gate=gate) for _ in range(2))
    tokens, _ = one_by_one(models[QUICK], [before], batches)
    found, _, rows = streamed(models[QUICK], [after], batches)
    assert found == tokens
    assert rows[-7:] == JOINED[-7:]
    assert_did_the_same(after, before)


def test_prompts_of_another_length_go_on_alone(models: dict[str, PreTrainedModel]) -> None:
    batches = asked(QUICK, models[QUICK])
    length = batches[0]["input_ids"].shape[1]
    batches = [padded(each, length + more) for each, more in zip(batches, (0, 1, 1), strict=True)]
    tokens, _ = one_by_one(models[QUICK], [], batches)
    found, _, rows = streamed(models[QUICK], [], batches)
    assert found == tokens
    assert rows[:10] == JOINED[:10]
    assert rows[10:14] == [2, 1, 1, 1]  # the first batch to its end
    assert rows[-7:] == [1, 3, 3, 2, 2, 2, 1]  # the third one joins the second


def test_seconds_and_passes_are_those_of_the_sequences(models: dict[str, PreTrainedModel]) -> None:
    model, passes = models[QUICK], 0.0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    batches = asked(QUICK, model)
    handle = model.register_forward_hook(count)
    stream = Stream(model, 4, lambda: passes)
    ended = []
    for inputs, lengths in zip(batches, LENGTHS, strict=True):
        stream.begin(**inputs, logits_processor=[Ends(lengths)])
        ended += stream.advance()
    ended += stream.finish()
    handle.remove()
    assert [each.passes for each in ended] == [9, 10, 11]  # the third batch ends before the second one
    assert all(each.seconds > 0 for each in ended)


def test_what_fails_leaves_the_model_as_it_was(models: dict[str, PreTrainedModel]) -> None:
    model = models[QUICK]

    class Fails(Ends):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if self.step == 4:
                raise KeyboardInterrupt
            return super().__call__(input_ids, scores)

    before, method = families.fingerprint(model), acting("var")
    with method(model, families.PROCESSOR):
        stream = Stream(model, 4)
        stream.begin(**asked(QUICK, model)[0], logits_processor=[Fails(LENGTHS[1])])
        with pytest.raises(KeyboardInterrupt):
            list(stream.advance())
        assert method.edit_stats().rows == 0
        model.generate(**asked(QUICK, model)[0])
        assert method.edit_stats().rows == 4
    assert families.fingerprint(model) == before
