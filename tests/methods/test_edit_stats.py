"""What every method says that it did."""

from __future__ import annotations

import warnings
from itertools import cycle
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import ATTACHED, acting, taken, under
from tests.support.names import UNLIKE
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.engine.stats import EditStats

pytestmark = [
    pytest.mark.promises,
    pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning"),
]

TOKENS = 3


def activity_of(name: str, model: PreTrainedModel, *runs: dict[str, Tensor], **kwargs: Any) -> EditStats:
    method = acting(name)
    with method(model, families.PROCESSOR):
        for inputs in runs:
            model.generate(**inputs, **under(model, **{"max_new_tokens": TOKENS, **kwargs}))
    return method.edit_stats()


STEPPING = [name for name in ATTACHED if not isinstance(acting(name), ChoosesTokens)]


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, taken(family, name)) for name, family in zip(STEPPING, cycle(UNLIKE), strict=False)],
)
def test_counts_of_a_batch_are_those_of_its_samples(
    name: str, family: str, models: dict[str, PreTrainedModel]
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (1, 2, 0))
    batch = activity_of(name, model, inputs)
    skips = int(acting(name).needs_image)
    assert batch.site_share
    assert batch.rows_touched == 3 - skips
    assert batch.rows_skipped == ({"no_image": 1} if skips else {})
    assert batch.steps == 3 * TOKENS
    together = activity_of(name, model, *families.split(family, model, inputs))
    assert (batch.rows, batch.steps, batch.steps_edited) == (
        together.rows,
        together.steps,
        together.steps_edited,
    )
    assert batch.site_share == pytest.approx(together.site_share)
    assert (batch.layers_edited, batch.rows_touched) == (together.layers_edited, together.rows_touched)
    if batch.size is not None:
        assert batch.size == pytest.approx(together.size, rel=1e-4)
    if acting(name).owns_logits:
        assert batch.layers_edited == []
        assert batch.kl_steps == together.kl_steps == TOKENS * batch.rows_touched
        assert 0 < batch.kl_mean <= batch.kl_max
        for figure in ("kl_mean", "kl_max", "kl_cut", "argmax_changed"):
            expected = getattr(together, figure)
            assert getattr(batch, figure) == (expected and pytest.approx(expected, rel=1e-3, abs=1e-6)), (
                figure
            )
    else:
        assert (batch.kl_mean, batch.kl_steps, batch.argmax_changed) == (None, None, None)
    beams = activity_of(name, model, inputs, num_beams=2)
    assert beams.rows == 6
    assert beams.rows_skipped == ({"no_image": 2} if skips else {})


@pytest.mark.parametrize("name", [name for name in ATTACHED if acting(name).needs_image])
def test_a_method_that_never_acts_warns_once(name: str, llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (0,))
    method = acting(name)
    with method(llava, families.PROCESSOR):
        with pytest.warns(vlmfix.InactiveMethodWarning, match="edited 0 of 0 sites in 2 steps .*no image"):
            llava.generate(**inputs, max_new_tokens=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            llava.generate(**inputs, max_new_tokens=2)
    assert method.edit_stats().rows_skipped == {"no_image": 2}
    assert method.edit_stats().site_share is None
    method.reset_edit_stats()
    assert method.edit_stats().rows == 0
    with method(llava, families.PROCESSOR), pytest.warns(vlmfix.InactiveMethodWarning):
        llava.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("name", ATTACHED)
def test_strength_zero_is_said_and_no_warning(name: str, llava: PreTrainedModel) -> None:
    cls = vlmfix.list_methods()[name]
    method = cls(**cls.identity_parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with method(llava):
            llava.generate(**families.prompt("llava", llava), max_new_tokens=2)
    assert method.edit_stats().details == {"strength zero": True}
    assert method.edit_stats().rows == 0
