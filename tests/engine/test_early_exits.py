"""Taps of inner layers and what the model makes of further hidden states, under all that else may happen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

import vlmfix
from tests.support import families
from tests.support.methods import acting, attached, pairs
from vlmfix.engine.capabilities import ReadsEarlyExits
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.prefix_cache import shared_prefix
from vlmfix.engine.static_edits import ExitRows
from vlmfix.methods.logits.base import plausible, rule_out
from vlmfix.methods.logits.deco import Likeliest
from vlmfix.methods.logits.dola import contrast_layers
from vlmfix.models.digest import weights_digest


@dataclass(frozen=True, kw_only=True)
class Taps(vlmfix.Method, ReadsEarlyExits):
    """Notes what enters every layer at the newest position, step by step, and edits nothing."""

    identity_parameters: ClassVar = {"strength": 0}
    edits: ClassVar = False
    keeps_prefix: ClassVar = True
    strength: int = 1
    steps: list[list[Tensor]] = field(default_factory=list, compare=False)

    def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
        return range(context.num_layers)

    def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
        early_exits = [context.early_exits[layer] for layer in range(context.num_layers)]
        for each in early_exits:
            assert each.shape == (context.layout.batch_size, families.HIDDEN)
            assert each.untyped_storage().nbytes() == each.numel() * each.element_size()  # no view of more
        self.steps.append(early_exits)
        return ()


@dataclass(frozen=True, kw_only=True)
class Readouts(Taps):
    """Notes the logits of every exit, normed and not, and of the last hidden state once more."""

    last_layer: list[Tensor] = field(default_factory=list, compare=False)
    logits: list[tuple[Tensor, ...]] = field(default_factory=list, compare=False)

    def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
        super().extra_hidden_states(context, hidden_states)
        assert context.modules is not None
        early_exits = self.tapped_layers(context)
        normed = [
            *ExitRows((*early_exits,), normed=True).of(context.early_exits, context.modules.final_norm),
            context.modules.final_norm(self.last_layer[-1]),
        ]
        raw = ExitRows((*early_exits,), normed=False).of(context.early_exits, context.modules.final_norm)
        return [*normed, *raw, hidden_states]

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        self.logits.append((logits, *branches))
        return logits


def generated(model: PreTrainedModel, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    return model.generate(
        **inputs,
        max_new_tokens=4,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )


@pytest.fixture
def extra_hidden_states(model: PreTrainedModel) -> Any:
    """The method, and what leaves the last layer for it."""
    method = Readouts()
    handle = (
        model.get_decoder()
        .layers[-1]
        .register_forward_hook(lambda module, args, output: method.last_layer.append(output[:, -1]))
    )
    yield method
    handle.remove()


def test_readouts_are_the_logits_of_the_model(
    extra_hidden_states: Readouts, model: PreTrainedModel, family: str
) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    stock = generated(model, inputs)
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    with extra_hidden_states(model):
        output = generated(model, inputs)
    assert torch.equal(output.sequences, stock.sequences)
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(stock.logits), atol=1e-5, rtol=1e-4)
    depth = families.LAYERS
    for (logits, *others), early_exits in zip(
        extra_hidden_states.logits, extra_hidden_states.steps, strict=True
    ):
        normed, raw, last = others[: depth + 1], others[depth + 1 : -1], others[-1]
        for same in (normed[-1], last):  # the exit after the last layer, with the norm
            torch.testing.assert_close(same, logits, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            for each, with_norm, without in zip(early_exits, normed[:-1], raw, strict=True):
                torch.testing.assert_close(with_norm, head(norm(each)), atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(without, head(each), atol=1e-5, rtol=1e-5)


def test_a_plain_pass_keeps_all_logits(
    extra_hidden_states: Readouts, model: PreTrainedModel, family: str
) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    with torch.no_grad():
        stock = model(**inputs).logits
        with extra_hidden_states(model):
            torch.testing.assert_close(model(**inputs).logits, stock, atol=1e-5, rtol=1e-4)
            short = model(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(short, stock[:, -1:], atol=1e-5, rtol=1e-4)
    for one, other in zip(*extra_hidden_states.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize(
    ("names", "family"),
    pairs([(), ("vhr",), ("fastv",), ("gift",), ("var", "pai"), ("m3id",), ("kmeans",)], in_turn=True),
)
def test_taps_hold_the_stream_of_the_prompts(
    names: tuple[str, ...], kwargs: dict[str, Any], model: PreTrainedModel, family: str
) -> None:
    """Under companions, prunings, second readings, merged tokens and branches; after edits of the layers."""
    inputs = families.prompt(family, model, (1, 2))
    tapped_layers = Taps()
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(attached(name, model))
        stack.enter_context(tapped_layers(model))
        output = generated(model, inputs, output_hidden_states=True, **kwargs)
    assert len(tapped_layers.steps) == len(output.hidden_states)
    for early_exits, states in zip(tapped_layers.steps, output.hidden_states, strict=True):
        for mine, theirs in zip(early_exits, states[:-1], strict=True):
            torch.testing.assert_close(mine, theirs[: len(mine), -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("other", "family"), pairs(["var", "gift", "pai", "fastv"], in_turn=True))
@pytest.mark.parametrize("name", ["dola", "deco"])
def test_exits_are_read_after_edits(name: str, other: str, model: PreTrainedModel, family: str) -> None:
    """Together with a method at another level: the formula on logits and exits of that method alone."""
    inputs = families.prompt(family, model, (1, 2))
    with attached(other, model), attached(name, model):
        together = generated(model, inputs)
    given = together.sequences
    with attached(other, model):  # made to say the same
        alone = generated(
            model,
            inputs,
            output_hidden_states=True,
            prefix_allowed_tokens_fn=lambda row, ids: [int(given[row, len(ids)])],
        )
    method: Any = acting(name).resolve(model.config, None)
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    for got, logits, states in zip(together.logits, alone.logits, alone.hidden_states, strict=True):
        early_exits = torch.stack([states[each][:, -1] for each in method.exits], dim=1)
        with torch.no_grad():
            early = head(norm(early_exits) if method.normed else early_exits)
        if name == "dola":
            mixed = contrast_layers(logits, early, method.weight).logits
            mixed = rule_out(logits, mixed, plausible(logits, method.beta))
        else:
            likeliest = Likeliest.of(logits, method.top_p, method.top_k)
            mixed = likeliest.spread(likeliest.correct(early, method.alpha)[0], logits)
        torch.testing.assert_close(got, mixed, atol=1e-4, rtol=1e-4)


def test_shared_beginnings(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1,))
    twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
    plain, shared = Taps(), Taps()
    with plain(model):
        generated(model, twice)
    with shared(model), shared_prefix(model):
        generated(model, twice)
    for one, other in zip(plain.steps, shared.steps, strict=True):
        torch.testing.assert_close(torch.stack(one), torch.stack(other), atol=1e-5, rtol=1e-5)


def test_nothing_is_kept_unasked(llava: PreTrainedModel) -> None:
    seen: list[DecodeContext] = []

    class Looks(Taps):
        def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
            seen.append(context)
            return ()

        def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
            return ()

    with Looks()(llava), attached("gift", llava):
        generated(llava, families.prompt("llava", llava))
    assert seen[0].early_exits == {}


def other_llava(**text: Any) -> PreTrainedModel:
    """A LLaVA around another language model."""
    config = AutoConfig.for_model(
        "llava",
        text_config={**families.TEXT, **text},
        vision_config={"model_type": "clip_vision_model", **families.VISION},
        image_token_index=families.IMAGE_TOKEN,
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config.eos_token_id = None
    return model


def test_a_final_norm_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = other_llava(model_type="persimmon")
    inputs = families.prompt("llava", model, (1, 2))
    with vlmfix.DoLa()(model):  # does without the norm
        generated(model, inputs)
    with pytest.raises(
        vlmfix.UnsupportedError, match="no final norm called 'norm'; give its name as final_norm"
    ):
        vlmfix.DeCo()(model).__enter__()
    profile = {
        "name": "a model of the user",
        "match": {"model_type": "llava", "weights": weights_digest(model)},
        "values": {"final_norm": {"value": "final_layernorm", "source": "its modeling file"}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.setenv("VLMFIX_PROFILES", str(tmp_path))
    method = acting("deco")
    with method(model):
        generated(model, inputs)
    assert method.edit_stats().site_share == 1


class Capped(LlavaForConditionalGeneration):
    """A family that bends its logits after the output embeddings."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 0.05 * torch.tanh(output.logits / 0.05)
        return output


def test_what_the_model_does_to_logits_it_does_to_those_of_exits(llava: PreTrainedModel) -> None:
    model = Capped(copy.deepcopy(llava.config)).eval()
    model.load_state_dict(llava.state_dict())
    inputs = families.prompt("llava", model, (1, 2))
    method = Readouts()
    method.last_layer.append(torch.zeros(2, families.HIDDEN))
    with torch.no_grad(), method(model):
        model(**inputs)
        raw = [model.get_output_embeddings()(each) for each in method.steps[0]]
    got = method.logits[0][-1 - families.LAYERS : -1]
    assert max(each.abs().max() for each in raw) > 0.05
    for each, capped in zip(raw, got, strict=True):
        torch.testing.assert_close(capped, 0.05 * torch.tanh(each / 0.05), atol=1e-6, rtol=1e-5)
