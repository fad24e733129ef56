"""Tests of batches that sequences leave when they have ended."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from transformers import LogitsProcessor, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

import vlmfix
from tests.support import families, zoo
from tests.support.did import assert_did_the_same
from tests.support.methods import acting, in_turn
from tests.support.names import FAMILIES, QUICK
from vlmfix.engine.buffered_cache import BufferedLayer, rows_that_stay
from vlmfix.engine.leaving_rows import decode
from vlmfix.inference.sampling import SeededSampling

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")

TOKENS = 9
IMAGES = (1, 2, 0, 1, 1, 1)
END, LENGTHS = 2, (5, 2, 9, 3, 6, 3)
# Whose branches choose by what is known of all prompts: their sequences stay.
STAY = {"sid", "sira", "crops", "causalmm"}


def answered(
    model: PreTrainedModel, method: vlmfix.Method | None, inputs: dict[str, Any], **kwargs: Any
) -> tuple[torch.Tensor, list[int]]:
    """New tokens, and the number of sequences in each pass of the text decoder over new ones alone."""
    sizes: list[int] = []
    ends: dict[str, Any] = {"eos_token_id": END, "logits_processor": [Ends()]}

    def see(module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["inputs_embeds"].shape[1] == 1:
            sizes.append(len(given["inputs_embeds"]))

    given = {} if method is None else method.decoding({})
    handle = model.get_decoder().register_forward_pre_hook(see, with_kwargs=True)
    try:
        with nullcontext() if method is None else method(model, families.PROCESSOR):
            output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **ends | given | kwargs)
    finally:
        handle.remove()
    return output[:, inputs["input_ids"].shape[1] :], sizes


class Ends(LogitsProcessor):
    """Lets each sequence end at a step of its own."""

    def __init__(self) -> None:
        self.steps, self.step = torch.tensor(LENGTHS), 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.step += 1
        ends = torch.where(self.steps == self.step, torch.inf, -torch.inf)
        return scores.index_copy(1, torch.tensor([END]), ends[:, None])

    def keep_rows(self, rows: torch.Tensor) -> None:
        self.steps = self.steps[rows]


# All others: in a stream, see test_entering_rows, which sequences leave in the same way.
@pytest.mark.parametrize(
    ("name", "family"), in_turn(["var", "vcd", "fastv", "dola", "tame", "vti", *sorted(STAY)])
)
def test_a_method_does_the_same_in_what_is_left(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, IMAGES)
    before, after = acting(name), acting(name)
    expected, _ = answered(model, before, inputs)
    found, sizes = answered(model, after, inputs, custom_generate=decode)
    assert found.tolist() == expected.tolist()
    assert_did_the_same(after, before)
    assert [row[:5] for row in after.latest_edit_stats()] == [row[:5] for row in before.latest_edit_stats()]
    rows = sizes[-8] // len(IMAGES)  # with branches
    assert [size // rows for size in sizes[-6:]] == ([6] * 6 if name in STAY else [6, 3, 2, 1, 1, 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_model_writes_the_same(family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, IMAGES)
    before = families.fingerprint(model)
    expected, _ = answered(model, None, inputs)
    found, sizes = answered(model, None, inputs, custom_generate=decode)
    assert found.tolist() == expected.tolist()
    assert sizes == [6, 6, 6, 3, 2, 1, 1, 1]
    assert families.fingerprint(model) == before


@pytest.mark.parametrize("names", [("var", "vcd"), ("fastv", "vhr"), ("gift", "dola")])
def test_methods_together_do_the_same(names: tuple[str, str], models: dict[str, PreTrainedModel]) -> None:
    model = models[QUICK]
    inputs = families.prompt(QUICK, model, IMAGES)
    before, after = ([acting(name) for name in names] for _ in range(2))
    with before[0](model, families.PROCESSOR):
        expected, _ = answered(model, before[1], inputs)
    with after[0](model, families.PROCESSOR):
        found, sizes = answered(model, after[1], inputs, custom_generate=decode)
    assert found.tolist() == expected.tolist()
    assert sizes[-1] < sizes[0]
    for one, other in zip(after, before, strict=True):
        assert_did_the_same(one, other)


@pytest.mark.parametrize("gate", ["entropy:0.3", "image_mass:below:0.5"])
def test_gates_follow_their_sequences(gate: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[QUICK]
    inputs = families.prompt(QUICK, model, IMAGES)
    before, after = (vlmfix.PAI(alpha=1.0, gate=gate) for _ in range(2))
    expected, _ = answered(model, before, inputs)
    found, sizes = answered(model, after, inputs, custom_generate=decode)
    assert found.tolist() == expected.tolist()
    assert sizes[-1] < sizes[0]
    assert_did_the_same(after, before)


def test_draws_stay_with_their_sequences(models: dict[str, PreTrainedModel]) -> None:
    model = models[QUICK]
    inputs = families.prompt(QUICK, model, IMAGES)

    def drawn(**kwargs: Any) -> tuple[torch.Tensor, list[int]]:
        sampling = SeededSampling(range(6), temperature=1.5)
        return answered(model, None, inputs, logits_processor=[sampling, Ends()], **kwargs)

    expected, _ = drawn()
    found, sizes = drawn(custom_generate=decode)
    assert found.tolist() == expected.tolist()
    assert sizes == [6, 6, 6, 3, 2, 1, 1, 1]
    assert found[0].tolist() != answered(model, None, inputs)[0][0].tolist()


class Watching(LogitsProcessor):
    """Does not say that it can go on with some of the sequences."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert len(scores) == 6
        return scores


@dataclass(frozen=True, kw_only=True)
class Observer(vlmfix.Method):
    """Counts the sequences of each step."""

    edits: ClassVar = False

    seen: list[int] = field(default_factory=list, compare=False)

    def edit_logits(self, context: Any, logits: torch.Tensor, branches: Any) -> torch.Tensor:
        self.seen.append(len(logits))
        return logits


@dataclass(frozen=True, kw_only=True)
class KeepsAList(vlmfix.Method):
    """Keeps what nobody can tell apart."""

    def begin(self, context: Any) -> None:
        context.state[self] = list(range(context.layout.batch_size))

    def edit_logits(self, context: Any, logits: torch.Tensor, branches: Any) -> torch.Tensor:
        assert len(context.state[self]) == len(logits)
        return logits + 1


def test_what_needs_all_sequences_keeps_them(models: dict[str, PreTrainedModel]) -> None:
    model = models[QUICK]
    inputs = families.prompt(QUICK, model, IMAGES)
    observer = Observer()
    _, watched = answered(model, None, inputs, logits_processor=[Watching(), Ends()], custom_generate=decode)
    _, observed = answered(model, observer, inputs, custom_generate=decode)
    _, kept = answered(model, KeepsAList(), inputs, custom_generate=decode)
    assert watched == observed == kept == [6] * 8
    assert observer.seen == [6] * 9


def test_without_a_cache_all_is_read_anew(models: dict[str, PreTrainedModel]) -> None:
    model = models[QUICK]
    inputs = families.prompt(QUICK, model, IMAGES)
    expected, _ = answered(model, None, inputs)
    found, sizes = answered(model, None, inputs, use_cache=False, custom_generate=decode)
    assert found.tolist() == expected.tolist()
    assert sizes == []  # of passes over new tokens alone


def test_rows_that_stay_move_as_little_as_they_can() -> None:
    alive = torch.tensor([True, False, True, False, True, True])
    rows = rows_that_stay(alive)
    assert rows.tolist() == [0, 4, 2, 5]
    layer = BufferedLayer()
    layer.lazy_initialization(torch.zeros(6, 1, 0, 2), torch.zeros(6, 1, 0, 2))
    states = torch.arange(36.0).view(6, 1, 3, 2)
    layer.keys, layer.values = states.clone(), -states
    layer = BufferedLayer.of(layer)
    layer.keep(rows)
    assert torch.equal(layer.keys, states[rows])
    assert torch.equal(layer.values, -states[rows])
    new = torch.ones(4, 1, 70, 2)
    key, value = layer.update(new, -new)
    assert torch.equal(key, torch.cat([states[rows], new], dim=2))
    assert torch.equal(value, -key)
    layer.crop(-70)
    assert torch.equal(layer.update(2 * new, new)[0][:, :, 3:], 2 * new)


# Encoder-decoders, a `generate` of its own, and no tokens in order: `answer_batch` does not come to the loop.
OTHER_LOOPS = ("t5gemma2", "florence2", "blip", "diffusion_gemma")
TYPES = [
    name
    for name, kind in zoo.TYPES.items()
    if (kind.base or name) in KNOWN and name not in zoo.UNBUILT and name not in OTHER_LOOPS
]
"""Those that this transformers knows."""


@pytest.mark.support
@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_model_writes_the_same(name: str) -> None:
    model = zoo.build(name)
    inputs = zoo.prompt(name, model, (1,) * 6)
    kwargs = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": END}
    expected = model.generate(**inputs, **kwargs, logits_processor=[Ends()])
    found = model.generate(**inputs, **kwargs, logits_processor=[Ends()], custom_generate=decode)
    assert found.tolist() == expected.tolist()
