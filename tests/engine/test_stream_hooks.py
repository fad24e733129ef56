"""Edits of the residual stream, compared with the same edit by hand."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families, zoo
from tests.support.methods import attached, values
from tests.support.names import UNLIKE
from vlmfix.engine.context import DecodeContext
from vlmfix.models.structure import StreamSite, stream_module, text_decoder

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")


@dataclass(frozen=True, kw_only=True)
class Push(vlmfix.Method, vlmfix.EditsStream):
    """Adds a constant to the stream at one place of one layer."""

    layer: int = 1
    by: float = 0.5
    stream_sites: ClassVar[tuple[StreamSite, ...]] = ("layer",)
    info: ClassVar = vlmfix.MethodInfo(
        stage="steering", changes="a constant", where="everywhere", forwards=1.0
    )

    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        return layer == self.layer

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        return states + self.by


class PushAttention(Push):
    stream_sites: ClassVar = ("attention",)


class PushFeedForward(Push):
    stream_sites: ClassVar = ("feed_forward",)


KINDS = [Push, PushAttention, PushFeedForward]


def by_hand(model: PreTrainedModel, kind: type[Push], by: float) -> ExitStack:
    """The same on the stock model."""

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return (output[0] + by, *output[1:]) if isinstance(output, tuple) else output + by

    [site] = kind.stream_sites
    stack = ExitStack()
    stack.callback(stream_module(text_decoder(model), 1, site).register_forward_hook(after).remove)
    return stack


@pytest.mark.parametrize("family", UNLIKE)
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_equals_that_by_hand(kind: type[Push], family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    stock = values(model, inputs, max_new_tokens=3)
    with by_hand(model, kind, 0.5):
        wanted = values(model, inputs, max_new_tokens=3)
    assert not torch.equal(wanted, stock)
    with kind(by=0.5)(model):
        torch.testing.assert_close(values(model, inputs, max_new_tokens=3), wanted)
    with kind(by=0.0)(model):
        assert torch.equal(values(model, inputs, max_new_tokens=3), stock)
    assert torch.equal(values(model, inputs, max_new_tokens=3), stock)


@pytest.mark.parametrize("family", UNLIKE)
@pytest.mark.parametrize("beside", ["vcd", "vhr", "fastv"])
def test_what_rides_along_is_left_alone(beside: str, family: str, model: PreTrainedModel) -> None:
    """An edit by nothing, beside branches, auxiliary prompts and a pruning, changes nothing."""
    inputs = families.prompt(family, model, (1, 2))
    with attached(beside, model):
        alone = values(model, inputs, max_new_tokens=3)
        with PushFeedForward(by=0.0)(model):
            assert torch.equal(values(model, inputs, max_new_tokens=3), alone)
        with PushFeedForward(by=0.5)(model):
            assert not torch.equal(values(model, inputs, max_new_tokens=3), alone)


LAYERS = ["llava+gemma2", "llava+olmo2", "glm4v", "cohere2_vision", "lfm2_vl", "llava+gpt_oss"]


@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_part_adds_is_found_in_layers_of_all_kinds(kind: str) -> None:
    """The stream that enters a layer and what its parts add make up the stream that leaves it."""
    decoder = text_decoder(zoo.build(kind))
    seen: dict[str, Tensor] = {}
    layer = max(index for index, each in enumerate(decoder.layers) if hasattr(each, "self_attn"))

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["enters"] = args[0] if args else kwargs["hidden_states"]

    with ExitStack() as stack:
        for name in ("attention", "feed_forward", "layer"):
            hook = stream_module(decoder, layer, name).register_forward_hook(keep(name))
            stack.callback(hook.remove)
        stack.callback(decoder.layers[layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
        hidden = decoder.config.hidden_size
        decoder(
            inputs_embeds=torch.randn(1, 5, hidden, generator=torch.Generator().manual_seed(0)),
            use_cache=False,
        )
    torch.testing.assert_close(seen["enters"] + seen["attention"] + seen["feed_forward"], seen["layer"])
    assert min(seen[name].abs().max() for name in ("attention", "feed_forward")) > 0


def test_layers_of_other_kinds_are_refused() -> None:
    model = zoo.build("granite_docling")
    with pytest.raises(vlmfix.UnsupportedError, match="which scales what these add"):
        PushAttention()(model).__enter__()
