"""Compatibility checks: what is refused because the correctness of a method could not be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

from vlmfix.engine import kernels
from vlmfix.engine.caches import check_cache_names, read_cache
from vlmfix.engine.capabilities import AddsAuxiliaryPrompt, ChoosesTokens, PrunesTokens, ReadsLastRowAgain
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.tokens import generation_setting, image_token
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import attention_layers, attention_of, memory_of, text_decoder

_ONE_TOKEN_AT_A_TIME = {
    "assistant_model": "assisted decoding",
    "use_mtp": "multi-token prediction",
    "prompt_lookup_num_tokens": "prompt lookup decoding",
    "assistant_early_exit": "early-exit assisted decoding",
    "prefill_chunk_size": "chunked prefill",
}


def stock_model(model: Any) -> Any:
    """The transformers model inside wrappers: PEFT adapters, DistributedDataParallel, `torch.compile`.

    Adapters lie inside it, so that it generates as the wrapper does.

    Raises:
        UnsupportedError: the wrapper changes prompts, or its calls, in ways that methods do not follow.
    """
    while isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel):
        wrapper: Any = model
        if callable(getattr(model, "get_base_model", None)):
            if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
                raise UnsupportedError(
                    f"{type(model).__name__} puts learned tokens before the prompt, which methods do not "
                    "follow; use adapters inside the model, such as LoRA"
                )
            model = wrapper.get_base_model()
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            break
    return model


_distrusted: WeakKeyDictionary[nn.Module, dict[type[MethodHooks], str]] = WeakKeyDictionary()


def distrust(model: PreTrainedModel, method: MethodHooks, reason: str) -> None:
    """Refuse to attach methods of this kind to a model from now on, for a reason that a probe found."""
    _distrusted.setdefault(model, {})[type(method)] = reason


def trust(model: PreTrainedModel) -> None:
    """Forget what probes found on a model."""
    _distrusted.pop(model, None)


def check_trusted(model: PreTrainedModel, method: MethodHooks) -> None:
    """Refuse a method that a probe has found to be wrong on this very model.

    Raises:
        UnsupportedError: with what was found.
    """
    reason = _distrusted.get(model, {}).get(type(method))
    if reason is not None:
        raise UnsupportedError(
            f"{type(method).__name__} cannot be relied on with this {type(model).__name__}: {reason}; use "
            "another method"
        )


def check_model(model: Any) -> None:
    """Refuse models whose decoding a method could not follow.

    Raises:
        UnsupportedError: with the reason and the remedy.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(
            f"{name} is not a transformers model; pass the PreTrainedModel itself (of a wrapper, the model "
            "inside it)"
        )
    if model.config.is_encoder_decoder:
        raise UnsupportedError(
            f"{name} is an encoder-decoder model; methods support decoder-only language models"
        )
    generate = getattr(type(model), "generate", None)
    if getattr(generate, "__module__", "").rpartition(".")[2].startswith("generation_"):
        raise UnsupportedError(
            f"{name} generates by a loop of its own, not token by token, which methods do not follow"
        )
    if not model.can_generate():
        raise UnsupportedError(f"{name} cannot generate; load it with AutoModelForImageTextToText")
    image_token(model.config)
    check_uncompiled(model)
    decoder = text_decoder(model)
    _check_decoder(model, decoder)
    check_cache_names(model)
    _check_attention(decoder)


def _check_decoder(model: PreTrainedModel, decoder: Any) -> None:
    name = type(model).__name__
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not attention_layers(decoder):
        raise UnsupportedError(
            f"{type(decoder).__name__} has no list of layers whose attention is called self_attn, where "
            "methods act; use a model with another text decoder"
        )
    if any(hasattr(layer, "cross_attn") for layer in layers):
        raise UnsupportedError(
            f"{name} reads images by cross-attention; methods need image tokens in the prompt"
        )
    if decoder is model.base_model:
        raise UnsupportedError(
            f"{name} puts images into its prompt inside of its text decoder; methods need a decoder that "
            "reads embeddings with the image features in them"
        )


def check_uncompiled(model: PreTrainedModel) -> None:
    """Refuse a model of which a part is compiled.

    Raises:
        UnsupportedError: with the part.
    """
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if (
            module._compiled_call_impl is not None
            or "_orig_mod" in module._modules
            or hasattr(forward, "_torchdynamo_orig_callable")
        ):
            part = f"{name!r} of {type(model).__name__}" if name else type(model).__name__
            raise UnsupportedError(
                f"{part} is compiled, so that hooks would be passed over; use the uncompiled model"
            )


def check_pass(model: PreTrainedModel) -> None:
    """Refuse a pass that is traced, or read again later: methods would act once and for all, or once alone.

    Raises:
        UnsupportedError: with the remedy.
    """
    name = type(model).__name__
    if torch._C._get_tracing_state() is not None or torch.compiler.is_exporting():
        raise UnsupportedError(
            f"{name} is inside a block, where it cannot be traced or exported; do it outside"
        )
    if model.training and model.is_gradient_checkpointing:
        raise UnsupportedError(
            f"{name} trains with gradient checkpointing, which reads layers again where methods do not act; "
            "call model.eval(), or gradient_checkpointing_disable()"
        )


def _check_attention(decoder: PreTrainedModel) -> None:
    memory_of(decoder)
    if kernels.ATTRIBUTE in vars(decoder):
        return
    kernel = decoder.config._attn_implementation
    if kernel == kernels.NAME:
        raise UnsupportedError(
            "another model that shares this configuration object has a method attached, or the configuration "
            "was copied inside its block; load the two models with configurations of their own"
        )
    if kernel == "eager":
        kernels.eager_function(attention_of(decoder, attention_layers(decoder)[0]))
    elif kernel != "sdpa" and not is_flash(kernel):
        raise UnsupportedError(
            f"the attention kernel {kernel!r} is not supported; load the model with "
            "attn_implementation='sdpa', 'flash_attention_2' or 'eager'"
        )


def is_flash(kernel: str) -> bool:
    """Whether an attention kernel is a FlashAttention, of the registry or of a kernel repository."""
    return "flash" in kernel and "paged" not in kernel


def check_generate(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> None:
    """Refuse decoding modes that do not read one token at a time into a growing cache.

    Args:
        model: its own generation configuration gives what the call leaves open.
        kwargs: arguments of `generate` by name.

    Raises:
        UnsupportedError: with the reason and the remedy.
    """

    def asked(name: str) -> Any:
        return generation_setting(model, kwargs, name)

    for name, mode in _ONE_TOKEN_AT_A_TIME.items():
        if asked(name):
            raise UnsupportedError(
                f"{mode} ({name}) reads several tokens a step, which methods do not support; generate "
                "without it"
            )
    if asked("guidance_scale") not in (None, 1):
        raise UnsupportedError(
            "classifier-free guidance (guidance_scale) reads a prompt of its own, which methods would take "
            "for a new one; generate without it"
        )
    cache = asked("cache_implementation")
    if cache not in (None, "dynamic", "static"):
        raise UnsupportedError(
            f"cache_implementation={cache!r} is not supported by methods; use the default dynamic cache or "
            "'static'"
        )
    check_cache(read_cache(kwargs), can_be_static=True)


def asks_for_static_cache(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of `generate` has a static cache; see `check_generate`."""
    asked = generation_setting(model, kwargs, "cache_implementation")
    return asked == "static" or type(read_cache(kwargs)) is StaticCache


def check_memory(decoder: Any, methods: Sequence[MethodHooks]) -> None:
    """Refuse methods that need more of the layers of a decoder than these keep.

    Args:
        methods: that are to act together.

    Raises:
        UnsupportedError: with the reason.
    """
    memory, kind = memory_of(decoder), type(decoder).__name__
    for method in methods:
        if isinstance(method, ChoosesTokens) and memory.own_layer is not None:
            raise UnsupportedError(
                f"{type(method).__name__} takes tokens back, and layers of {kind} keep theirs in a "
                f"{memory.own_layer}, which is not known to allow it"
            )
    if not memory.has_state:
        return
    for method in methods:
        name = type(method).__name__
        if isinstance(method, PrunesTokens):
            raise UnsupportedError(
                f"{name} drops tokens, and layers of {kind} keep a state that runs over all of them"
            )
        if isinstance(method, AddsAuxiliaryPrompt):
            raise UnsupportedError(
                f"{name} reads a second prompt after the first, and layers of {kind} keep a state into which "
                "both would go"
            )
        if isinstance(method, ChoosesTokens):
            raise UnsupportedError(
                f"{name} takes tokens back, and layers of {kind} keep a state that does not allow it"
            )
    again = next((method for method in methods if isinstance(method, ReadsLastRowAgain)), None)
    other = next((each for each in methods if not each.owns_logits and each is not again), None)
    if again is not None and other is not None:
        raise UnsupportedError(
            f"{type(again).__name__} reads the last row of a prompt again, which layers of {kind} with a "
            f"state allow for one method alone, and {type(other).__name__} acts, too; use one of them"
        )


def check_window(decoder: Any, window: int | None, prompt: int, new: int, what: str = "the prompt") -> None:
    """Refuse more tokens than all layers of a decoder keep.

    Args:
        window: the least that a layer keeps; None: all layers keep all tokens.
        prompt: tokens of the prompts, padding included.
        new: tokens of the answers.
        what: that has the tokens of the prompt.

    Raises:
        UnsupportedError: with the numbers.
    """
    if window is None or prompt + new - 1 <= window:
        return
    room = window - prompt + 1
    remedy = f"set max_new_tokens to at most {room}" if room > 0 else "shorten the prompt"
    raise UnsupportedError(
        f"some layers of {type(decoder).__name__} attend to the last {window} tokens alone, where methods "
        f"would not be exact: {what} has {prompt} tokens, and {new} are to follow; {remedy}"
    )


def refuse_continuous_batching(*args: Any, **kwargs: Any) -> Any:
    """Stands in for a model's `init_continuous_batching`, which `generate_batch` calls.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        "continuous batching (generate_batch) reads text alone, from a cache in pages, which methods do not "
        "support; use generate"
    )


def check_cache(cache: Any, *, can_be_static: bool = False) -> None:
    """Refuse caches that do not grow by one key a token and layer.

    Args:
        cache: None for none.
        can_be_static: whether an empty static one will do, which `generate` fills.

    Raises:
        UnsupportedError: it is another one.
    """
    if can_be_static and type(cache) is StaticCache:
        if cache.get_seq_length():
            raise UnsupportedError(
                "the static cache is filled already, with a prompt that methods have not seen; call its "
                "reset() and pass the whole prompt"
            )
        return
    if cache is not None and type(cache) is not DynamicCache:
        raise UnsupportedError(
            f"{type(cache).__name__} is not supported by methods; use the default DynamicCache"
        )
