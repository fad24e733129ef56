"""Methods that can do nothing: no edit is counted, and the warning names the cause."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import ACTING, values

NOTHING_MIXED = "leaves the distribution of the next token as it is, and beta=.* rules no token out"
CASES: list[tuple[str, dict[str, Any], str]] = [
    *(
        (name, {strength: 0, "beta": 1e-9}, NOTHING_MIXED)
        for name, strength in {
            **dict.fromkeys(
                ("vcd", "lcd", "icd", "vdd", "sid", "sira", "avisc", "damro", "visual_entropy"), "alpha"
            ),
            **{"causalmm": "gamma", "m3id": "decay", "ritual": "kappa", "flb": "gamma", "dola": "weight"},
        }.items()
    ),
    ("only", {"alpha_agree": 0, "alpha_differ": 0, "beta": 1e-9}, NOTHING_MIXED),
    ("sid", {"keep": 1.0, "beta": 0}, NOTHING_MIXED),
    ("baseline.plausibility", {"beta": 1e-9}, NOTHING_MIXED),
    (
        "deco",
        {"alpha": 0, "top_k": 0, "top_p": 1 - 1e-9},
        "top_k=0 rule no token out, and alpha=0 is too small",
    ),
    ("sla", {"gamma": 1e-12}, "gamma=1e-12 is too small to move"),
    ("memvr", {"threshold": 1.0}, "no entropy before layers 1 to 2 was above threshold=1"),
    ("hulluedit", {"kappa": 0, "lambda_prior": 0}, "what it shrinks is too little"),
    ("visual_entropy", {"gamma": 1.0}, "no token about to be written was flatter than gamma=1"),
    ("gift", {"clip_std": 0}, "clip_std 0 flattens the map"),
    ("gift", {"image_boost": 1e-9}, "image_boost and query_gain are too small"),
    ("vhr", {"num_last_layers": 0, "extra_layers": ()}, "no layer is reinforced; raise num_last_layers"),
    ("var", {"min_image_mass": 1.0}, "no head with visual sinks puts 1 of its attention on the image"),
    ("adhh", {"threshold": 1.0, "heads": ((1, 0),)}, "no listed head puts 1 of its attention"),
    *((name, {"alpha": 1e-12}, "its strength is too small to tell") for name in ("pai", "devils")),
    ("paint", {"local_boost": 1e-12, "summary_boost": 0}, "its strength is too small to tell"),
    *(
        (name, {"kept_tokens": 500}, "budget is not below")
        for name in (
            *("cdpruner", "kmeans", "mmtok", "prunesid", "random_tokens", "similarity_filter"),
            "uniform_grid",
        )
    ),
    ("adaptinfer", {"prune_layers": (1,), "kept_tokens": (500,)}, "budget is not below"),
    ("sparsevlm", {"prune_layers": (1,), "kept_tokens": (500,)}, "budget is not below"),
    ("fastv", {"prune_ratio": 0.01}, "budget is not below"),
    ("divprune", {"keep_ratio": 0.999}, "budget is not below"),
    ("visionzip", {"dominant_tokens": 16, "contextual_tokens": 0}, "budget is not below"),
]


@pytest.mark.parametrize(("name", "changes", "reason"), CASES)
def test_idle_at_these_parameters(
    name: str, changes: dict[str, Any], reason: str, llava: PreTrainedModel
) -> None:
    inputs = families.prompt("llava", llava, (1, 0))
    stock = values(llava, inputs, max_new_tokens=3)
    method = vlmfix.make_method(name, **(ACTING.get(name, {}) | changes))
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match=f"edited 0 of .*{reason}")
    with warns, method(llava, families.PROCESSOR):
        found = values(llava, inputs, max_new_tokens=3)
    torch.testing.assert_close(found, stock, atol=1e-5, rtol=1e-5)
    assert method.edit_stats().steps_edited == 0


def test_flb_has_nothing_to_do_at_the_first_token(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match="acts from the second new token on")
    with warns, vlmfix.FLB(beta=0)(llava):
        values(llava, inputs, max_new_tokens=1)


def test_salient_tokens_that_pruning_dropped(llava: PreTrainedModel) -> None:
    """Factors of 1 alone would change a row by the rounding of its sum."""
    inputs = families.prompt("llava", llava)
    gift = vlmfix.make_method("gift", **ACTING["gift"], query_gain=1.0)

    class Flat(type(gift)):  # type: ignore[misc]
        def observe(self, context: Any, layer: int, weights: Any) -> None:
            super().observe(context, layer, weights)
            if context.is_prefill:
                context.state[self, "saliency"] = torch.zeros_like(context.state[self, "saliency"])

    method = Flat(**gift.parameters)
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match="no salient image token is left")
    with warns, method(llava, families.PROCESSOR):
        values(llava, inputs, max_new_tokens=3)
    assert method.edit_stats().steps_edited == 0


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gift", {"head_keep_fraction": 0.2}, "keeps none of the 4 heads of this model; use 0.25 to 1"),
        ("var", {"first_layer": 4}, "that can be edited go from 0 to 3, the last one is left out"),
    ],
)
def test_parameters_that_leave_nothing_to_edit_are_refused(
    name: str, changes: dict[str, Any], reason: str, llava: PreTrainedModel
) -> None:
    method = vlmfix.make_method(name, **(ACTING[name] | changes))
    with pytest.raises(ValueError, match=reason), method(llava, families.PROCESSOR):
        pass


def test_reasons_of_methods_that_find_nothing(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    for method, reason in (
        (vlmfix.VAR(sink_dimensions=(3,), sink_threshold=5.6), "no image token has a sink score above 5.6"),
        (
            vlmfix.VAR(sink_dimensions=(3,), sink_threshold=2.5, min_image_mass=1.0),
            "no head with visual sinks puts 1 of its attention on the image",
        ),
        (vlmfix.RandomTokens(kept_tokens=500), "the budget is not below the number of image tokens"),
    ):
        with method(llava), pytest.warns(vlmfix.InactiveMethodWarning, match=reason):
            llava.generate(**inputs, max_new_tokens=2)
