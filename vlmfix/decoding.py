"""Decoding as its name says: what the checkpoint's generation_config would change is set aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

# What does not choose tokens: their ids, lengths that every call gives, notes of transformers.
_KEPT = {
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "pad_token_id",
    "transformers_version",
}
# Without effect, where None is not: the defaults of transformers, but for sampling from all tokens.
_PLAIN: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "use_cache": True,
}


def set_aside(model: PreTrainedModel) -> dict[str, Any]:
    """The settings of the checkpoint's generation_config that would change which tokens are chosen."""
    return {
        name: value
        for name, value in _own(model).items()
        if name not in _KEPT and value != _PLAIN.get(name) and value != _WITHOUT_EFFECT.get(name)
    }


def plain_decoding(model: PreTrainedModel, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `model.generate` under which the checkpoint's generation_config changes nothing but token
    ids.

    Args:
        model: with the generation_config of its checkpoint; it stays as it is.
        generate_kwargs: what the caller wants; all of it holds, a `generation_config` among it included.
    """
    given = generate_kwargs.get("generation_config")
    wanted = {
        name
        for name, value in ({} if given is None else given.to_dict()).items()
        if value is not None
    }
    plain = {name: _PLAIN.get(name) for name in _own(model) if name not in _KEPT}
    if given is None:
        plain |= {"do_sample": False, "num_beams": 1}
        sampling = generate_kwargs.get("do_sample")
        plain |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampling else {}
    return {name: value for name, value in plain.items() if name not in wanted} | dict(generate_kwargs)


def _own(model: PreTrainedModel) -> dict[str, Any]:
    """What the checkpoint says of generation, by name; custom entries, which no version knows, are none."""
    known = vars(GenerationConfig())
    return {
        name: value
        for name, value in model.generation_config.to_diff_dict().items()
        if name in known and value is not None
    }
