"""Methods under gates, on two families that are unlike."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import UNLIKE, acting, values
from vlmfix.engine.gate_formulas import entropy, ramp
from vlmfix.errors import UnsupportedError

pytestmark = [
    pytest.mark.parametrize("family", UNLIKE),
    pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning"),
]

TOKENS = 5
NARROW = "entropy:0.998..0.999"
"""Where the entropies of random models lie."""

LAST_ROW = ("adhh", "pai", "gift")
"""Methods of attention that edit the newest row alone."""


def gated(name: str, gate: str, **parameters: Any) -> vlmfix.Method:
    return dataclasses.replace(acting(name), gate=gate, **parameters)


def logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], *methods: vlmfix.Method, **kwargs: Any
) -> Tensor:
    """Of every generated position under the methods, `(steps, batch, vocabulary)`."""
    if not methods:
        return values(model, inputs, max_new_tokens=TOKENS, **kwargs)
    with methods[0](model, families.PROCESSOR):
        return logits(model, inputs, *methods[1:], **kwargs)


@pytest.mark.parametrize("name", [*LAST_ROW, "var", "vaf", "vhr", "vcd", "deco"])
def test_a_gate_that_is_open_is_none(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    edited = logits(model, inputs, acting(name))
    assert torch.equal(logits(model, inputs, gated(name, "always:1")), edited)
    assert not torch.equal(logits(model, inputs, gated(name, "always:0.5")), edited)


@pytest.mark.parametrize("name", LAST_ROW)
def test_a_gate_that_is_closed_leaves_the_model(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    method = gated(name, "always:0")
    stock = logits(model, inputs)
    assert torch.equal(logits(model, inputs, method), stock)
    assert method.edit_stats().steps_edited == 0
    vaf = acting("vaf")
    assert torch.equal(logits(model, inputs, method, vaf), logits(model, inputs, vaf))


def test_closed_gates_of_logits_and_heads(family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2))
    vcd, vhr = gated("vcd", "always:0"), gated("vhr", "always:0")
    with pytest.warns(vlmfix.InactiveMethodWarning, match="its gate always:0 never opened"):
        closed = logits(model, inputs, vcd)
    torch.testing.assert_close(closed, logits(model, inputs), atol=1e-6, rtol=0)
    assert vcd.edit_stats().kl_max == 0
    logits(model, inputs, vhr)
    assert vhr.edit_stats().steps_edited == 2  # rows of the prompt are edited, the steps after it are not


def test_logits_take_the_entropy_of_their_step(family: str, model: PreTrainedModel) -> None:
    """Against the blend of plain and edited logits after the same tokens."""
    inputs = families.prompt(family, model, (1, 2))
    first = logits(model, inputs, acting("vcd"))[0]
    stock = logits(model, inputs)[0]
    opening = ramp(entropy(stock), 0.998, 0.999)
    assert ((opening > 0) & (opening < 1)).all()
    expected = stock + opening[:, None] * (first - stock)
    found = logits(model, inputs, gated("vcd", NARROW))[0]
    torch.testing.assert_close(found, expected.where(first > -500, first), atol=2e-3, rtol=1e-4)


def test_attention_takes_the_entropy_of_the_step_before(family: str, model: PreTrainedModel) -> None:
    """The second step is that under a constant gate; the first is closed, so that prompts are plain."""
    inputs = families.prompt(family, model, (1,))
    stock = logits(model, inputs)
    opening = float(ramp(entropy(stock[0]), 0.998, 0.999))
    assert 0 < opening < 1
    method = gated("adhh", f"{NARROW}:first=0")
    found = logits(model, inputs, method)
    assert torch.equal(found[0], stock[0])
    seen = []

    class Fixed(vlmfix.Always):
        """Opens in the second step as was worked out."""

        @property
        def first(self) -> float:
            return 0.0

        def opening(self, seen_: Any) -> Tensor:
            seen.append(seen_.step)
            return torch.full_like(seen_.logits[:, 0], opening)

    torch.testing.assert_close(
        logits(model, inputs, dataclasses.replace(method, gate=Fixed(0.5)))[1], found[1], atol=1e-5, rtol=0
    )
    assert seen == list(range(TOKENS))
    assert not torch.equal(found[1], stock[1])


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("adhh", NARROW),
        ("vhr", "image_mass:below:0.1..0.9"),
        ("vcd", "disagreement:0..0.05"),
        ("pai", "random:0.5"),
    ],
)
def test_batch_equals_single(name: str, gate: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 1))
    batch = logits(model, inputs, gated(name, gate))
    for row, single in enumerate(families.split(family, model, inputs)):
        method = gated(name, gate)
        torch.testing.assert_close(batch[:, row], logits(model, single, method)[:, 0], atol=2e-4, rtol=1e-4)
        assert 0 < method.edit_stats().details["gate"] < 1


@pytest.mark.parametrize("gate", [NARROW, "random:0.5"])
def test_openings_follow_beams(gate: str, family: str, model: PreTrainedModel) -> None:
    """A beam has the log-probability that its tokens have when they are read alone."""
    inputs = families.prompt(family, model, (1, 2))
    length = inputs["input_ids"].shape[1]
    method = gated("adhh", gate)
    given = {"max_new_tokens": 7, "do_sample": False, "return_dict_in_generate": True}
    with method(model):
        found = model.generate(
            **inputs, **given, num_beams=4, num_return_sequences=4, length_penalty=0.0, output_scores=True
        )
        singles = families.split(family, model, inputs)
        for number, (sequence, score) in enumerate(
            zip(found.sequences[:, length:], found.sequences_scores, strict=True)
        ):
            single = singles[number // 4]
            begin = single["input_ids"].shape[1]
            alone = model.generate(
                **single,
                **given,
                output_logits=True,
                prefix_allowed_tokens_fn=lambda _, ids, to=sequence, at=begin: [int(to[len(ids) - at])],
            )
            shares = torch.stack(alone.logits)[:, 0].log_softmax(dim=-1)
            total = shares.gather(1, sequence[: len(shares), None]).sum()
            torch.testing.assert_close(score, total, atol=2e-5, rtol=0)


def test_processors_give_the_tokens_of_the_block(family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2))
    method = gated("vcd", NARROW)
    given = {"max_new_tokens": TOKENS, "do_sample": False, "num_beams": 2}
    processors = method.logits_processor(model, inputs)
    outside = model.generate(**inputs, **given, logits_processor=processors)
    with method(model):
        assert torch.equal(model.generate(**inputs, **given), outside)


def test_what_is_refused(family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1,))
    with pytest.raises(UnsupportedError, match=r"the gate of ADHH is for the newest token .*use_cache=True"):
        logits(model, inputs, gated("adhh", NARROW), use_cache=False)
    with pytest.raises(UnsupportedError, match=r"OPERA tries tokens .*the gate of ADHH does not follow"):
        logits(model, inputs, gated("adhh", NARROW), vlmfix.OPERA())
