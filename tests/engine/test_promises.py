"""The promises of the engine, once per hook signature and family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import (
    ATTACHED,
    acting,
    attached,
    built,
    cases,
    hook_signature,
    plain,
    representatives,
    values,
    with_flash_attention,
)
from vlmfix.engine.capabilities import ChoosesTokens

pytestmark = [
    pytest.mark.promises,
    pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning"),
]

TOKENS = 3
REPRESENTATIVES = representatives(ATTACHED)

on_families_in_turn = pytest.mark.parametrize(("name", "family"), cases(REPRESENTATIVES, in_turn=True))
on_images_alone = pytest.mark.parametrize(
    ("name", "family"),
    cases([each for each in REPRESENTATIVES if not isinstance(acting(each), ChoosesTokens)], in_turn=True),
)
"""A loop of its own decodes text in its own way, too."""


def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    """What the generated positions come from, see `values`."""
    return values(model, inputs, max_new_tokens=TOKENS, **kwargs)


def test_every_method_has_a_representative() -> None:
    methods = vlmfix.list_methods()
    assert {hook_signature(methods[name]) for name in ATTACHED} == {
        hook_signature(methods[name]) for name in REPRESENTATIVES
    }
    assert len(REPRESENTATIVES) < len(ATTACHED)


def test_signatures_tell_hooks_apart() -> None:
    class Same(vlmfix.VCD):
        """Nothing of its own."""

    class Observer(vlmfix.VCD):
        def observe(self, *_: Any) -> None:
            pass

    assert hook_signature(Same) == hook_signature(vlmfix.VCD)
    assert hook_signature(Observer) == hook_signature(vlmfix.VCD) | {"observe"}


@on_families_in_turn
def test_acts_and_leaves_the_model_as_it_was(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2))
    before, stock = families.fingerprint(model), logits(model, inputs, **plain(name))
    with attached(name, model):
        edited = logits(model, inputs)
    assert (edited - stock).abs().max() > 1e-3
    assert torch.equal(logits(model, inputs, **plain(name)), stock)
    assert families.fingerprint(model) == before


@on_families_in_turn
def test_restored_after_an_exception(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model)  # transformers prepares the encoder once
    before = families.fingerprint(model)
    with pytest.raises(KeyboardInterrupt), attached(name, model):
        raise KeyboardInterrupt
    assert families.fingerprint(model) == before

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = model.get_decoder().layers[2].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), attached(name, model):
        logits(model, inputs)
    handle.remove()
    assert families.fingerprint(model) == before


@on_images_alone
def test_without_an_image(name: str, family: str, model: PreTrainedModel) -> None:
    """A method that needs an image leaves the model alone; one that needs none acts."""
    inputs = families.prompt(family, model, (0,))
    stock = logits(model, inputs)
    with attached(name, model):
        assert torch.equal(logits(model, inputs), stock) == acting(name).needs_image


@on_families_in_turn
def test_prompts_in_a_row_share_nothing(name: str, family: str, model: PreTrainedModel) -> None:
    first, second = families.prompt(family, model, (2,), seed=1), families.prompt(family, model, (1,), seed=2)
    with attached(name, model):
        alone = logits(model, second)
    with attached(name, model):
        logits(model, first)
        assert torch.equal(logits(model, second), alone)


@on_families_in_turn
def test_kernels_give_the_same(
    name: str, family: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDPA, eager attention, and FlashAttention, which reads one prompt in another way than several."""
    several, one = (families.prompt(family, model, images) for images in ((1, 2, 0), (2,)))
    with attached(name, model):
        expected = logits(model, several), logits(model, one)
    eager = built(family, attn_implementation="eager")
    with attached(name, eager):
        torch.testing.assert_close(logits(eager, several), expected[0], atol=1e-4, rtol=1e-4)
    flash = with_flash_attention(family, monkeypatch)
    with attached(name, flash):
        torch.testing.assert_close(logits(flash, several), expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits(flash, one), expected[1], atol=1e-5, rtol=1e-4)
