"""Decoding as its name says: what the checkpoint's generation_config would change is set aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

# What chooses no tokens: ids, lengths that every call gives, the cache, notes of transformers.
_KEPT = {
    "_commit_hash",
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "pad_token_id",
    "transformers_version",
    "use_cache",
}
# Without effect; of what is not listed, None is.
_PLAIN: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "typical_p": 1.0,
}
# Arguments of greedy decoding.
_OF_GREEDY = {"eos_token_id", "logits_processor", "max_new_tokens", "pad_token_id"}
# The defaults of transformers for sampling; without it, None is without effect and without a warning.
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}


def plain_decoding(model: PreTrainedModel, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `model.generate` under which the checkpoint's generation_config gives token ids alone.

    Without other arguments that is greedy decoding; with `do_sample` or `num_beams`, sampling or beam search
    at the defaults of transformers.

    Args:
        model: with the generation_config of its checkpoint, which stays as it is.
        generate_kwargs: what the caller wants; it all holds, and so does a `generation_config` in it.
    """
    given = generate_kwargs.get("generation_config")
    samples = generate_kwargs.get("do_sample", getattr(given, "do_sample", None))
    without_effect = _PLAIN | (_SAMPLING if samples else {})
    plain = {name: without_effect.get(name) for name in _own(model)} | {"do_sample": False, "num_beams": 1}
    return {name: value for name, value in plain.items() if getattr(given, name, None) is None} | dict(
        generate_kwargs
    )


def is_greedy(model: PreTrainedModel, generate_kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of `generate` takes the likeliest token in each step, by the scores that processors of
    its own give, and does nothing else.

    Args:
        model: with the `generate` of transformers, or another one.
        generate_kwargs: as `plain_decoding` gives them.
    """
    own: Any = type(model)
    if getattr(own, "generate", None) is not GenerationMixin.generate:
        return False
    without_effect = _PLAIN | {"use_cache": True}
    return {"do_sample", "num_beams"} <= generate_kwargs.keys() and all(
        name in _OF_GREEDY or value is None or (name in without_effect and value == without_effect[name])
        for name, value in generate_kwargs.items()
    )


def set_aside(model: PreTrainedModel) -> dict[str, Any]:
    """The settings of the checkpoint's generation_config that `plain_decoding` leaves without effect."""
    return {name: value for name, value in _own(model).items() if value and value != _PLAIN.get(name)}


def _own(model: PreTrainedModel) -> dict[str, Any]:
    """What the checkpoint says of choosing tokens, by name; no version reads its custom entries."""
    known = vars(GenerationConfig()).keys() - _KEPT
    said = model.generation_config.to_diff_dict()
    return {name: value for name, value in said.items() if name in known and value is not None}
