"""Rows are what their names say, whatever the checkpoint's generation_config asks for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import vlmfix
from vlmfix.evaluation.datasets import demo_scene, render
from vlmfix.inference.decoding import is_greedy, plain_decoding, set_aside

LONG = 30
"""Tokens within which the answer ends by itself."""

LEAKS: list[dict[str, Any]] = [
    {"repetition_penalty": 3.0},
    {"num_beams": 3, "length_penalty": 5.0},
    {"do_sample": True, "temperature": 5.0},
    {"min_new_tokens": LONG - 5},
    {"suppress_tokens": list(range(20, 200))},
    {"begin_suppress_tokens": list(range(20, 200))},
    {"no_repeat_ngram_size": 1},
    {"forced_bos_token_id": 30},
    {"num_return_sequences": 2, "num_beams": 2},
    {"return_dict_in_generate": True, "output_scores": True},
    {"cache_implementation": "static"},
    {"prompt_lookup_num_tokens": 3},
    {"guidance_scale": 2.0},
    {"exponential_decay_length_penalty": [2, 3.0]},
    {"num_beams": -3},
    {"made_up_by_somebody": "x"},
]
PICTURE = render(demo_scene())


def answer(model: Any, processor: Any, method: Any = None, **kwargs: Any) -> str:
    torch.manual_seed(0)
    return vlmfix.generate(
        model, processor, PICTURE, "Describe the image.", method, **{"max_new_tokens": 10} | kwargs
    )


@pytest.fixture(scope="module")
def stock(loaded: tuple[Any, Any]) -> dict[str, str]:
    """What the rows say without any settings of the checkpoint."""
    return {
        "greedy": answer(*loaded),
        "long": answer(*loaded, max_new_tokens=LONG),
        "beams": answer(*loaded, num_beams=2),
        "sample": answer(*loaded, do_sample=True),
        "baseline.beam": answer(*loaded, "baseline.beam"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: "+".join(leak))
def test_nothing_of_the_checkpoint_leaks_into_a_row(
    leak: dict[str, Any], stock: dict[str, str], loaded: tuple[Any, Any]
) -> None:
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    for name, value in leak.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    assert answer(model, processor) == stock["greedy"]
    if "min_new_tokens" in leak:
        assert answer(model, processor, max_new_tokens=LONG) == stock["long"]
    if len(leak) == 2 or "repetition_penalty" in leak:
        assert answer(model, processor, num_beams=2) == stock["beams"]
        assert answer(model, processor, do_sample=True) == stock["sample"]
        assert answer(model, processor, "baseline.beam") == stock["baseline.beam"]
    assert model.generation_config.to_dict() == before
    assert set_aside(model) == ({} if "made_up_by_somebody" in leak else leak)


def test_what_the_caller_asks_for_holds(stock: dict[str, str]) -> None:
    model, processor = vlmfix.load()
    wanted = {"repetition_penalty": 3.0}
    asked = answer(model, processor, **wanted)
    assert asked != stock["greedy"]
    model.generation_config.repetition_penalty = 9.0
    assert answer(model, processor, **wanted) == asked
    assert plain_decoding(model, wanted)["repetition_penalty"] == 3.0


def test_tokens_that_the_model_has_no_embedding_for_are_refused() -> None:
    model, processor = vlmfix.load()
    processor.tokenizer.add_tokens(["zebrafish"])
    with pytest.raises(ValueError, match=r"the tokenizer gives token \d+, but the embedding"):
        vlmfix.generate(model, processor, PICTURE, "Is there a zebrafish?", max_new_tokens=2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"top_p": None, "use_cache": True, "length_penalty": 1.0, "logits_processor": [object()]}, True),
        ({"do_sample": True}, False),
        ({"num_beams": 2}, False),
        ({"streamer": object()}, False),
        ({"repetition_penalty": 1.2}, False),
        ({"use_cache": False}, False),
        ({"custom_generate": print}, False),
        ({"generation_config": object()}, False),
    ],
)
def test_greedy_decoding_is_known_by_its_arguments(
    given: dict[str, Any], expected: bool, loaded: tuple[Any, Any]
) -> None:
    plain = plain_decoding(loaded[0], {"max_new_tokens": 4})
    assert is_greedy(loaded[0], plain | given) == expected
    assert not is_greedy(loaded[0], {"max_new_tokens": 4} | given)  # the checkpoint may want to sample


def test_a_model_with_a_generate_of_its_own_keeps_it(loaded: tuple[Any, Any]) -> None:
    class Own(type(loaded[0])):  # type: ignore[misc]
        def generate(self, *args: Any, **kwargs: Any) -> Any: ...

    assert not is_greedy(Own(loaded[0].config), plain_decoding(loaded[0], {"max_new_tokens": 4}))
