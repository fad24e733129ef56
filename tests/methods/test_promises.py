"""The promises of the design, for every registered method on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import acting, attached, pairs, plain, under, values, with_flash_attention

pytestmark = [
    pytest.mark.promises,
    pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning"),
]

TOKENS = 8
METHODS = [name for name, cls in vlmfix.list_methods().items() if cls.attaches]
"""What acts inside `model.generate`; what asks several times (CARVE) or acts from outside (controls of the
prompt and of the decoding) has its promises in its own tests."""

REFUSED = {("visionzip", "llava_onevision"), ("visionzip", "internvl")}


def cases(names: list[str], *, in_turn: bool = False) -> pytest.MarkDecorator:
    accepted = [case for case in pairs(names, in_turn=in_turn) if case not in REFUSED]
    return pytest.mark.parametrize(("name", "family"), accepted)


on_all_families = cases(METHODS)
on_families_in_turn = cases(METHODS, in_turn=True)
on_images_alone = cases([name for name in METHODS if not acting(name).decodes], in_turn=True)
"""A loop of its own decodes text in its own way, too."""


@pytest.mark.parametrize(("refusing", "other"), sorted(REFUSED))
def test_families_that_are_refused(refusing: str, other: str, models: dict[str, PreTrainedModel]) -> None:
    before = families.fingerprint(models[other])
    with pytest.raises(vlmfix.UnsupportedError, match=f"{other} is not read; use LLaVA"):
        attached(refusing, models[other]).__enter__()
    assert families.fingerprint(models[other]) == before


def new_tokens(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    output = model.generate(**inputs, max_new_tokens=TOKENS, **under(model, **kwargs))
    return output[:, inputs["input_ids"].shape[1] :]


def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    """What the generated positions come from, see `values`."""
    return values(model, inputs, max_new_tokens=TOKENS, **kwargs)


@on_families_in_turn
def test_strength_zero_is_the_stock_model(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    cls = vlmfix.list_methods()[name]
    kwargs = cls(**cls.identity_parameters).decoding({})
    stock = logits(model, inputs, **plain(name))
    with cls(**cls.identity_parameters)(model):
        assert torch.equal(logits(model, inputs, **kwargs), stock)


@on_all_families
def test_acts_and_leaves_the_model_as_it_was(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2))
    before, stock = families.fingerprint(model), logits(model, inputs, **plain(name))
    with attached(name, model):
        edited = logits(model, inputs)
    assert (edited - stock).abs().max() > 1e-3
    assert torch.equal(logits(model, inputs, **plain(name)), stock)
    assert families.fingerprint(model) == before


@on_all_families
def test_batch_equals_single(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0, 1))
    with attached(name, model):
        batch = logits(model, inputs)
        for row, single in enumerate(families.split(family, model, inputs)):
            torch.testing.assert_close(batch[:, row], logits(model, single)[:, 0], atol=1e-4, rtol=1e-4)


@on_families_in_turn
@pytest.mark.parametrize(
    "decoding",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=["beams", "sampling"],
)
def test_acts_in_other_ways_of_decoding(
    name: str, decoding: dict[str, Any], family: str, model: PreTrainedModel
) -> None:
    inputs = families.prompt(family, model, (1, 2))
    if acting(name).decodes and decoding.get("do_sample"):
        with attached(name, model), pytest.raises(vlmfix.UnsupportedError, match="does not sample"):
            new_tokens(model, inputs, **decoding)
        return
    outputs = []
    for _ in range(2):
        with attached(name, model):
            torch.manual_seed(0)
            outputs.append(new_tokens(model, inputs, **decoding))
    assert torch.equal(*outputs)
    if decoding.get("do_sample"):
        return
    with attached(name, model):
        for row, single in enumerate(families.split(family, model, inputs)):
            count = decoding.get("num_return_sequences", 1)
            assert torch.equal(
                outputs[0][row * count : (row + 1) * count], new_tokens(model, single, **decoding)
            )


@on_all_families
def test_without_cache_equals_with_cache(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 0, 2))
    if acting(name).decodes:
        with attached(name, model), pytest.raises(vlmfix.UnsupportedError, match="use_cache=True"):
            new_tokens(model, inputs, use_cache=False)
        return
    with attached(name, model):
        torch.testing.assert_close(
            logits(model, inputs, use_cache=False), logits(model, inputs), atol=1e-4, rtol=1e-4
        )


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
def test_restored_after_an_exception(name: str, family: str, model: PreTrainedModel) -> None:
    before = families.fingerprint(model)
    with pytest.raises(KeyboardInterrupt), attached(name, model):
        raise KeyboardInterrupt
    assert families.fingerprint(model) == before

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    inputs = families.prompt(family, model)
    handle = model.get_decoder().layers[2].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), attached(name, model):
        new_tokens(model, inputs)
    handle.remove()
    assert families.fingerprint(model) == before


@on_families_in_turn
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name: str, dtype: torch.dtype, family: str) -> None:
    model = families.build(family, dtype=dtype)
    inputs = families.prompt(family, model, (1, 2, 0))
    with attached(name, model):
        edited = logits(model, inputs)
    assert not edited.isnan().any()
    assert acting(name).owns_logits or edited.isfinite().all()  # a cut rules tokens out
    assert not torch.equal(edited, logits(model, inputs, **plain(name)))


@on_families_in_turn
def test_eager_kernel_gives_the_same_as_sdpa(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    eager = families.build(family, attn_implementation="eager")
    with attached(name, model), attached(name, eager):
        torch.testing.assert_close(logits(eager, inputs), logits(model, inputs), atol=1e-4, rtol=1e-4)


@on_families_in_turn
def test_flash_attention(
    name: str, family: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [families.prompt(family, model, images) for images in ((1, 2, 0), (2,))]
    with attached(name, model):
        expected = [logits(model, prompt) for prompt in prompts]
    other = with_flash_attention(family, monkeypatch)
    with attached(name, other):
        for prompt, stock in zip(prompts, expected, strict=True):
            torch.testing.assert_close(logits(other, prompt), stock, atol=1e-5, rtol=1e-4)
