"""The promises of methods, for every registered method on families that are unlike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import (
    ATTACHED,
    REFUSED,
    acting,
    attached,
    built,
    in_turn,
    plain,
    representatives,
    under,
    unlike,
    values,
)
from vlmfix.engine.capabilities import ChoosesTokens

pytestmark = [
    pytest.mark.promises,
    pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning"),
]

TOKENS = 3
REPRESENTATIVES = representatives(ATTACHED)
on_families_in_turn = pytest.mark.parametrize(("name", "family"), in_turn(ATTACHED))


@pytest.mark.parametrize(("refusing", "other"), sorted(REFUSED))
def test_families_that_are_refused(refusing: str, other: str, models: dict[str, PreTrainedModel]) -> None:
    before = families.fingerprint(models[other])
    with pytest.raises(
        vlmfix.UnsupportedError, match=rf"{other} (is not |has none)|{other} cuts pictures into"
    ):
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


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, unlike(number, name)) for number, name in enumerate(ATTACHED) if name not in REPRESENTATIVES],
)
def test_acts(name: str, family: str, model: PreTrainedModel) -> None:
    """Of the others `tests/engine/test_promises.py` knows it."""
    inputs = families.prompt(family, model, (1, 2))
    stock = logits(model, inputs, **plain(name))
    with attached(name, model):
        edited = logits(model, inputs)
    assert (edited - stock).abs().max() > 1e-3


@on_families_in_turn
def test_batch_equals_single(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    with attached(name, model):
        batch = logits(model, inputs)
        for row, single in enumerate(families.split(family, model, inputs)):
            torch.testing.assert_close(batch[:, row], logits(model, single)[:, 0], atol=1e-4, rtol=1e-4)


BEAMS = {"num_beams": 3, "num_return_sequences": 2}
SAMPLING = {"do_sample": True, "num_return_sequences": 2}


@pytest.mark.parametrize(
    ("name", "decoding", "family"),
    [
        pytest.param(name, decoding, unlike(number + turn, name), id=f"{name}-{way}")
        for number, name in enumerate(ATTACHED)
        for turn, (way, decoding) in enumerate([("beams", BEAMS), ("sampling", SAMPLING)])
        if way == "beams" or name in REPRESENTATIVES
    ],
)
def test_acts_in_other_ways_of_decoding(
    name: str, decoding: dict[str, Any], family: str, model: PreTrainedModel
) -> None:
    inputs = families.prompt(family, model, (1, 2))
    if isinstance(acting(name), ChoosesTokens) and decoding.get("do_sample"):
        with attached(name, model), pytest.raises(vlmfix.UnsupportedError, match="does not sample"):
            new_tokens(model, inputs, **decoding)
        return
    with attached(name, model):
        torch.manual_seed(0)
        batch = new_tokens(model, inputs, **decoding)
    with attached(name, model):
        if decoding.get("do_sample"):
            torch.manual_seed(0)
            assert torch.equal(new_tokens(model, inputs, **decoding), batch)
            return
        singles = families.split(family, model, inputs)
        assert torch.equal(torch.cat([new_tokens(model, each, **decoding) for each in singles]), batch)


@on_families_in_turn
def test_without_cache_equals_with_cache(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 0, 2))
    if isinstance(acting(name), ChoosesTokens):
        with attached(name, model), pytest.raises(vlmfix.UnsupportedError, match="use_cache=True"):
            new_tokens(model, inputs, use_cache=False)
        return
    with attached(name, model):
        torch.testing.assert_close(
            logits(model, inputs, use_cache=False), logits(model, inputs), atol=1e-4, rtol=1e-4
        )


STATIC = {"cache_implementation": "static"}
NOT_STATIC = {
    *("act", "adaiat", "adavboost", "causalmm", "crops", "eah", "hulluedit", "iat", "ilvad"),
    *("memvr", "only", "opera", "rudder", "sid", "sira", "tame"),
}


@pytest.mark.parametrize(
    ("name", "family", "decoding"),
    [
        pytest.param(name, family, decoding, id=f"{name}-{family}-{way}")
        for number, (name, family) in enumerate(in_turn(ATTACHED))
        for way, decoding in (("greedy", {}), ("beams", {"num_beams": 3}))
        if way == "greedy" or (name in REPRESENTATIVES and name not in NOT_STATIC)
    ],
)
def test_static_cache_equals_growing_cache(
    name: str, family: str, decoding: dict[str, Any], model: PreTrainedModel
) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    method, other = acting(name), acting(name)
    if name in NOT_STATIC:
        with attached(name, model), pytest.raises(vlmfix.UnsupportedError, match="for the default dynamic"):
            new_tokens(model, inputs, **STATIC)
        return
    with method(model, families.PROCESSOR):
        growing = logits(model, inputs, **decoding)
    new_tokens(model, inputs, **STATIC)  # leaves the length of its cache on the model
    before = families.fingerprint(model)
    with other(model, families.PROCESSOR):
        static = logits(model, inputs, **decoding, **STATIC)
        torch.testing.assert_close(static, growing, atol=1e-4, rtol=1e-4)
    assert families.fingerprint(model) == before
    counted = [[each[:5] for each in every.latest_edit_stats()] for every in (method, other)]
    assert counted[0] == counted[1]
    sizes = [each.edit_stats().size for each in (method, other)]
    assert sizes[1] == (sizes[0] if sizes[0] is None else pytest.approx(sizes[0], rel=1e-3, abs=1e-6))


@pytest.mark.parametrize(
    ("name", "family", "dtype"),
    [
        (name, unlike(number, name), dtype)
        for name in ATTACHED
        for number, dtype in enumerate((torch.bfloat16, torch.float16))
        if dtype == torch.bfloat16 or name in REPRESENTATIVES
    ],
)
def test_half_precision(name: str, family: str, dtype: torch.dtype) -> None:
    model = built(family, dtype=dtype)
    inputs = families.prompt(family, model, (1, 2, 0))
    with attached(name, model):
        edited = logits(model, inputs)
    assert not edited.isnan().any()
    assert acting(name).owns_logits or edited.isfinite().all()  # a cut rules tokens out
    assert not torch.equal(edited, logits(model, inputs, **plain(name)))
