"""Attaching and detaching: composition, several models, and everything that is refused with one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    TextStreamer,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vlmfix
from tests.support import families
from tests.support.methods import acting
from vlmfix.engine.caches import read_cache, with_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.kernels import ATTRIBUTE
from vlmfix.engine.layout import Rows

VAR = acting("var")


def generate(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    return model.generate(**inputs, **{"max_new_tokens": 6, "do_sample": False, **kwargs})


class Other(vlmfix.VAR):
    """Another method, for composition."""


@pytest.fixture
def inputs(llava: PreTrainedModel) -> dict[str, torch.Tensor]:
    return families.prompt("llava", llava, (1, 2))


def test_two_models_at_once(inputs: dict[str, torch.Tensor]) -> None:
    first, second = families.build("llava", seed=1), families.build("llava", seed=2)
    alone = []
    for model in (first, second):
        with VAR(model):
            alone.append(generate(model, inputs))
    stock = generate(second, inputs)
    with VAR(first), VAR(second):
        assert torch.equal(generate(first, inputs), alone[0])
        assert torch.equal(generate(second, inputs), alone[1])
        assert torch.equal(generate(first, inputs), alone[0])
    with VAR(first):
        assert torch.equal(generate(second, inputs), stock)


def test_methods_compose_in_the_order_of_entry(
    llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    order = []

    class First(vlmfix.VAR):
        def edit_weights(self, context: Any, layer: int, weights: torch.Tensor) -> torch.Tensor:
            order.append("first")
            return super().edit_weights(context, layer, weights)

    class Second(First):
        def edit_weights(self, context: Any, layer: int, weights: torch.Tensor) -> torch.Tensor:
            order.append("second")
            return weights

    settings = {"sink_dimensions": (families.SINK_DIMENSION,), "sink_threshold": 2.5}
    with First(**settings)(llava), Second(**settings)(llava):
        generate(llava, inputs, max_new_tokens=1)
    assert order == ["first", "second"] * 2
    assert ATTRIBUTE not in vars(llava.get_decoder())


def test_leaving_in_any_order(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    stock = generate(llava, inputs)
    first, second = VAR(llava), Other(sink_dimensions=(0,))(llava)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    generate(llava, inputs)
    second.__exit__(None, None, None)
    assert torch.equal(generate(llava, inputs), stock)
    assert "generate" not in vars(llava)


def test_the_same_method_twice_is_refused(llava: PreTrainedModel) -> None:
    with VAR(llava), pytest.raises(vlmfix.UnsupportedError, match="VAR is attached"), VAR(llava):
        pass
    assert "generate" not in vars(llava)


def test_streamer_and_positional_arguments(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    single = families.prompt("llava", llava, (1,))

    class Collect(TextStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            pass

    streamer = Collect()
    with VAR(llava):
        streamed = generate(llava, single, streamer=streamer)
        ids = single.pop("input_ids")
        positional = llava.generate(ids, GenerationConfig(max_new_tokens=6, pad_token_id=0), **single)
    assert streamer.tokens == streamed[0].tolist() == positional[0].tolist()


def test_user_made_empty_cache(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with VAR(llava):
        assert torch.equal(
            generate(llava, with_cache(llava, inputs, DynamicCache())), generate(llava, inputs)
        )


def test_flash_attention_gets_the_padding_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for FlashAttention 2, which takes the 2-D mask: stock tokens, and VAR as under SDPA."""
    seen = []

    def flash(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen.append(attention_mask)
        queries, keys = query.shape[2], key.shape[2]
        visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
        if attention_mask is not None:
            assert attention_mask.shape == (query.shape[0], keys)
            visible = visible & attention_mask[:, None, None].bool()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, visible, **kwargs)

    model = families.build("llava")
    padded, unpadded = families.prompt("llava", model, (1, 2)), families.prompt("llava", model, (1,))
    with VAR(model):
        expected = [generate(model, prompt) for prompt in (padded, unpadded)]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", flash)
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    monkeypatch.setattr(type(model.get_decoder()), "_flash_attn_can_dispatch", lambda *_, **__: True)
    with VAR(model):
        assert torch.equal(generate(model, padded), expected[0])
        assert all(mask is not None for mask in seen)
        seen.clear()
        assert torch.equal(generate(model, unpadded), expected[1])
        assert all(mask is None for mask in seen)
    assert model.get_decoder().config._attn_implementation == "flash_attention_2"


def test_embeddings_with_their_ids(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    embeddings = llava.get_input_embeddings()(inputs["input_ids"])
    features = torch.cat(
        llava.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    )
    merged = embeddings.clone()
    merged[inputs["input_ids"] == families.IMAGE_TOKEN] = features
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with VAR(llava):
        expected = generate(llava, inputs)[:, ids.shape[1] :]
        with_ids = generate(llava, {"input_ids": ids, "inputs_embeds": merged, "attention_mask": mask})
        beams = generate(
            llava, {"input_ids": ids, "inputs_embeds": merged, "attention_mask": mask}, num_beams=2
        )
        expected_beams = generate(llava, inputs, num_beams=2)[:, ids.shape[1] :]
        with pytest.raises(vlmfix.UnsupportedError, match="image positions cannot be known"):
            generate(llava, {"inputs_embeds": merged, "attention_mask": mask})
        placeholders = {"inputs_embeds": embeddings, "attention_mask": mask}
        unmerged = generate(llava, placeholders | {"pixel_values": inputs["pixel_values"]})
    assert torch.equal(with_ids[:, -6:], expected)
    assert torch.equal(beams[:, -6:], expected_beams)
    assert torch.equal(unmerged, expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cache_implementation": "quantized"}, "cache_implementation='quantized'"),
        (
            {"generation_config": GenerationConfig(cache_implementation="offloaded_static")},
            "offloaded_static",
        ),
        ({"prompt_lookup_num_tokens": 3}, "prompt lookup decoding"),
        ({"prefill_chunk_size": 4}, "chunked prefill"),
        ({"assistant_early_exit": 2}, "early-exit assisted decoding"),
        ({"guidance_scale": 1.5}, "classifier-free guidance"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_decoding_that_is_refused(
    kwargs: dict[str, Any], message: str, llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    with VAR(llava), pytest.raises(vlmfix.UnsupportedError, match=message):
        generate(llava, inputs, **kwargs)
    generate(llava, inputs)


def test_continuous_batching_is_refused(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with VAR(llava), pytest.raises(vlmfix.UnsupportedError, match="continuous batching"):
        llava.generate_batch(inputs["input_ids"].tolist())
    assert "init_continuous_batching" not in vars(llava)


def test_assistant_model_is_refused(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with VAR(llava), pytest.raises(vlmfix.UnsupportedError, match="assisted decoding"):
        generate(llava, inputs, assistant_model=families.build("llava"))


def test_filled_cache_is_refused(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    cache = DynamicCache()
    with torch.no_grad():
        llava(**with_cache(llava, inputs, cache))
    with VAR(llava), torch.no_grad():
        with pytest.raises(vlmfix.UnsupportedError, match="filled cache"):
            llava(**with_cache(llava, {"input_ids": inputs["input_ids"][:, -1:]}, cache))
        output = llava(**inputs, use_cache=True)
        with pytest.raises(vlmfix.UnsupportedError, match="a step of 3 tokens"):
            llava(**with_cache(llava, {"input_ids": inputs["input_ids"][:, -3:]}, read_cache(output)))


def test_models_that_are_refused(llava: PreTrainedModel) -> None:
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text_only = LlamaForCausalLM(LlamaConfig(vocab_size=50, **tiny))
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    for refused, message in [
        (text_only, "names no image_token_id"),
        (encoder_decoder, "encoder-decoder"),
        (torch.nn.Linear(1, 1), "not a transformers model"),
        (llava.model, "cannot generate"),
    ]:
        with pytest.raises(vlmfix.UnsupportedError, match=message), VAR(refused):
            pass


def windowed(window: int) -> PreTrainedModel:
    """LLaVA whose text decoder attends to the last tokens alone."""
    config = families.FAMILIES["llava"].config
    text = config["text_config"] | {"model_type": "mistral", "sliding_window": window}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model("llava", **config | {"text_config": text})
    )
    model.generation_config.eos_token_id = None
    return model.eval()


def test_a_window_is_exact_while_everything_fits_and_refused_beyond() -> None:
    prompt = families.prompt("llava", windowed(64))
    length = prompt["input_ids"].shape[1]
    for window, new in ((length + 2, 3), (length, 1)):
        model = windowed(window)
        whole = windowed(4 * length)
        whole.load_state_dict(model.state_dict())
        tokens = []
        for each in (model, whole):
            with vlmfix.PAI(alpha=1.0)(each):
                tokens.append(each.generate(**prompt, max_new_tokens=new, do_sample=False))
        assert torch.equal(*tokens)
        with (
            vlmfix.PAI()(model),
            pytest.raises(
                vlmfix.UnsupportedError, match=rf"last {window} tokens.*max_new_tokens to at most {new}$"
            ),
        ):
            model.generate(**prompt, max_new_tokens=new + 1)
    short = windowed(length - 1)
    with vlmfix.PAI()(short), pytest.raises(vlmfix.UnsupportedError, match="shorten the prompt"):
        short.generate(**prompt, max_new_tokens=1)
    with vlmfix.PAI()(short), pytest.raises(vlmfix.UnsupportedError, match="shorten the prompt"):
        short(**prompt)


def test_other_kernels_are_refused() -> None:
    model = families.build("llava")
    model.get_decoder().config._attn_implementation = "flex_attention"
    with pytest.raises(vlmfix.UnsupportedError, match="'flex_attention' is not supported"), VAR(model):
        pass


def test_compiled_model_is_refused() -> None:
    model = families.build("llava")
    model.compile()
    with pytest.raises(vlmfix.UnsupportedError, match="compiled"), VAR(model):
        pass


def test_shared_configuration_is_refused() -> None:
    first = families.build("llava")
    second = type(first)(first.config)
    with VAR(first), pytest.raises(vlmfix.UnsupportedError, match="shares this configuration"), VAR(second):
        pass


def test_shared_decoder_is_refused() -> None:
    first = families.build("llava")
    second = type(first)(families.build("llava").config)
    second.model.language_model = first.model.language_model
    with VAR(first), pytest.raises(vlmfix.UnsupportedError, match="same language model"), VAR(second):
        pass


def test_decoder_that_bypasses_the_registry_is_refused(inputs: dict[str, torch.Tensor]) -> None:
    model = families.build("llava")
    attention = model.get_decoder().layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with VAR(model), pytest.raises(vlmfix.UnsupportedError, match=r"layers \[1\]"):
        generate(model, inputs)
    assert "generate" not in vars(model)


class InPlace(vlmfix.Method):
    """Changes what one hook is given."""

    hook: ClassVar[str]

    def rows(self, context: DecodeContext, layer: int) -> Rows:
        return context.layout.last_row

    def _changed(self, hook: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(2) if hook == self.hook else tensor

    def edit_scores(self, context: DecodeContext, layer: int, scores: torch.Tensor) -> torch.Tensor:
        return self._changed("edit_scores", scores)

    def edit_weights(self, context: DecodeContext, layer: int, weights: torch.Tensor) -> torch.Tensor:
        return self._changed("edit_weights", weights)

    def edit_heads(self, context: DecodeContext, layer: int, heads: torch.Tensor) -> torch.Tensor:
        return self._changed("edit_heads", heads)

    def observe(self, context: DecodeContext, layer: int, weights: torch.Tensor) -> None:
        self._changed("observe", weights)

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: torch.Tensor) -> None:
        self._changed("enter_layer", hidden_states)

    def edit_logits(
        self, context: DecodeContext, logits: torch.Tensor, branches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return self._changed("edit_logits", logits)


HOOKS = ("edit_scores", "edit_weights", "edit_heads", "observe", "enter_layer", "edit_logits")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_edit_in_place_is_refused_by_name(hook: str, mode: Any, llava: PreTrainedModel) -> None:
    cls = type("Changing", (InPlace,), {"hook": hook})
    with (
        mode(),
        cls()(llava),
        pytest.raises(vlmfix.UnsupportedError, match=rf"^Changing\.{hook} changed its tensor in place"),
    ):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=2)


def test_a_branch_that_is_longer_than_the_prompt_has_to_fit_the_window_too() -> None:
    """ICD reads the prompt with an instruction more."""
    prompt = families.prompt("llava", windowed(512))
    method = vlmfix.ICD(beta=0.001, instruction_ids=(7, 8, 9, 10, 11))
    length = prompt["input_ids"].shape[1]
    model = windowed(length + 4)
    with (
        method(model),
        pytest.raises(
            vlmfix.UnsupportedError, match=rf"a branch beside the prompt has {length + 5} tokens, and 2"
        ),
    ):
        model.generate(**prompt, max_new_tokens=2)
    model = windowed(length + 6)
    whole = windowed(512)
    whole.load_state_dict(model.state_dict())
    tokens = []
    for each in (model, whole):
        with method(each):
            tokens.append(each.generate(**prompt, max_new_tokens=2, do_sample=False))
    assert torch.equal(*tokens)
