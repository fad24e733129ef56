"""The cache under whatever name: one that is not known turns no method off quietly."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import acting
from vlmfix.engine.caches import (
    cache_name,
    read_cache,
    with_cache,
    without_cache,
)


class Renamed(nn.Module):
    def forward(self, hidden: torch.Tensor, kv_store: Cache | None = None) -> None: ...


class Nameless(nn.Module):
    def forward(self, hidden: torch.Tensor) -> None: ...


class Both(nn.Module):
    def forward(self, cache: Cache | None = None, past_key_values: Cache | None = None) -> None: ...


class Untyped(nn.Module):
    def forward(self, hidden: Any, cache=None) -> None: ...  # type: ignore[no-untyped-def]


class PassesOn(Untyped):
    def forward(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def inputs(llava: PreTrainedModel) -> dict[str, torch.Tensor]:
    return families.prompt("llava", llava, (1, 2))


@pytest.mark.parametrize("kind", [Renamed, Nameless, Both], ids=lambda kind: kind.__name__)
def test_names_that_are_not_known_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match=rf"{kind.__name__}\.forward of transformers 5"):
        cache_name(kind())


@pytest.mark.parametrize("kind", [Untyped, PassesOn], ids=lambda kind: kind.__name__)
def test_names_that_are_known(kind: type[nn.Module]) -> None:
    assert cache_name(kind()) == "cache"


def test_reading_by_type_and_writing_by_name() -> None:
    cache = DynamicCache()
    assert read_cache({"anything": cache, "same": cache}) is cache
    assert read_cache({"past_key_values": ("legacy",)}) == ("legacy",)
    assert read_cache({"cache_position": torch.zeros(1), "past_key_values": None}) is None
    assert without_cache({"past_key_values": None, "any": cache, "use_cache": True}) == {"use_cache": True}
    assert with_cache(Untyped(), {"past_key_values": DynamicCache()}, cache) == {"cache": cache}
    with pytest.raises(vlmfix.UnsupportedError, match="several caches in one call"):
        read_cache({"cache": cache, "past_key_values": DynamicCache()})


@pytest.mark.promises
@pytest.mark.parametrize("part", ["model", "decoder", "layer", "attention"])
def test_a_renamed_argument_is_refused(part: str) -> None:
    """What transformers 5.24 did to a library for 5.23, once more: attaching says so, at any depth."""
    model = families.build("llava")
    layer = model.get_decoder().layers[3]
    module = {
        "model": model,
        "decoder": model.get_decoder(),
        "layer": layer,
        "attention": layer.self_attn,
    }[part]

    class Next(type(module)):  # type: ignore[misc]
        def forward(self, *args: Any, kv_store: Cache | None = None, **kwargs: Any) -> Any:
            return super().forward(*args, **with_cache(super(), kwargs, kv_store))  # type: ignore[arg-type]

    module.__class__ = Next
    with pytest.raises(vlmfix.UnsupportedError, match=r"transformers 5\..*Next: none that is known"):
        acting("var")(model).__enter__()
    assert "generate" not in vars(model)


@pytest.mark.promises
def test_a_cache_that_does_not_arrive_is_refused(inputs: dict[str, torch.Tensor]) -> None:
    """A name that is swallowed on the way: every step would look like a prompt of one token."""
    model = families.build("llava")
    core = type(model.model)

    class Swallows(core):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **without_cache(kwargs))

    model.model.__class__ = Swallows
    with acting("var")(model), pytest.raises(vlmfix.UnsupportedError, match="could not tell a prompt"):
        model.generate(**inputs, max_new_tokens=4, do_sample=False)


def test_a_pass_without_the_cache_inside_generate_is_refused(
    llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    def asks(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        llava(input_ids=ids[:, -1:])
        return scores

    with acting("var")(llava), pytest.raises(vlmfix.UnsupportedError, match="calls the model by itself"):
        llava.generate(**inputs, max_new_tokens=4, logits_processor=[asks])


@torch.no_grad()
def test_a_run_goes_on_from_its_own_cache_alone(
    llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    token = inputs["input_ids"][:, -1:]
    with acting("var")(llava):
        cache = read_cache(llava(**inputs, use_cache=True))
        other = copy.deepcopy(cache)
        with pytest.raises(vlmfix.UnsupportedError, match="another cache than that of the prompt"):
            llava(input_ids=token, **with_cache(llava, {}, other))
        llava(input_ids=token, **with_cache(llava, {}, cache))
        cache.crop(-1)
        with pytest.raises(vlmfix.UnsupportedError, match=r"holds .* tokens, and .* have been read"):
            llava(input_ids=token, **with_cache(llava, {}, cache))


@pytest.mark.promises
def test_every_name_that_a_version_knows_fills_the_cache_of_the_caller(
    llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    names = {cache_name(llava), "past_key_values"}
    length = inputs["input_ids"].shape[1]
    with acting("var")(llava):
        expected = llava.generate(**inputs, max_new_tokens=4, do_sample=False)
        for name in names:
            cache = DynamicCache()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of transformers, about the older name
                output = llava.generate(**inputs, max_new_tokens=4, do_sample=False, **{name: cache})
            assert torch.equal(output, expected)
            assert cache.get_seq_length() == length + 3


def test_without_a_cache_nothing_changes(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with acting("var")(llava):
        with_one = llava.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(
            llava.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False), with_one
        )


@torch.no_grad()
def test_arguments_by_position_are_seen(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """The mask of a padded batch stands third in the forward of LLaVA."""
    given = inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]
    with acting("var")(llava):
        assert torch.equal(llava(*given).logits, llava(**inputs).logits)
    with acting("var")(llava), pytest.raises(vlmfix.UnsupportedError, match="assisted decoding"):
        llava.generate(
            inputs["input_ids"],
            None,
            None,
            None,
            None,
            None,
            llava,
            **{name: value for name, value in inputs.items() if name != "input_ids"},
        )
