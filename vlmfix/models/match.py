"""Checkpoint that a profile or recipe is for: its type, its shape and its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from vlmfix.models.digest import weights_digest

_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size")


def match_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a file says that is for a model and no other one.

    Args:
        model: as it was loaded.

    Returns:
        `model_type`, `text_config` with attributes of the text configuration, and `weights`, see
        `vlmfix.models.digest`.

    Raises:
        ValueError: the weights are nowhere.
    """
    weights = weights_digest(model)
    if weights is None:
        raise ValueError("the model has no weights to be known by; load it on a device other than meta")
    text = model.config.get_text_config()
    return {
        "model_type": model.config.model_type,
        "text_config": {key: getattr(text, key) for key in _SHAPE},
        "weights": weights,
    }


def fits(match: Mapping[str, Any], config: PreTrainedConfig) -> bool:
    """Whether a configuration is of the type and shape that a file is for; says nothing of the weights."""
    types = match["model_type"]
    text = config.get_text_config()
    return config.model_type in ([types] if isinstance(types, str) else types) and all(
        getattr(text, name, None) == value for name, value in match.get("text_config", {}).items()
    )


def mismatch(match: Mapping[str, Any], model: PreTrainedModel) -> str | None:
    """Why a model is not the checkpoint that a file is for, whose weights it names; None: it is."""
    if not fits(match, model.config):
        return f"this model, a {model.config.model_type}, is of another type or shape"
    weights = weights_digest(model)
    if weights is None:
        return "this model has no weights to be known by"
    if weights != match["weights"]:
        return f"its weights are {match['weights']}, those of this model {weights}"
    return None


def file_name(name: str, match: Mapping[str, Any]) -> str:
    """A name for a file about a checkpoint; files about other weights have other names."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()
    return f"{stem}-{match['weights'][-8:]}.yaml"


def fault_of_match(match: Any) -> str | None:
    """What is wrong with the field `match` of a file; None: nothing."""
    if not isinstance(match, Mapping):
        return f"match is {match!r}; it must be a mapping"
    types = match.get("model_type")
    several = types if isinstance(types, list) else [types]
    if not several or not all(isinstance(each, str) and each for each in several):
        return (
            f"match.model_type is {given(match, 'model_type')}; it must be a model type such as "
            "llava, or a list of them"
        )
    text = match.get("text_config", {})
    if not isinstance(text, Mapping) or not all(isinstance(name, str) for name in text):
        return f"match.text_config is {text!r}; it must be a mapping of attributes of the text configuration"
    if "weights" in match and not isinstance(match["weights"], str):
        return f"match.weights is {match['weights']!r}; it must be a digest, in quotes"
    return unknown_key("match.", match, ("model_type", "text_config", "weights"))


def unknown_key(prefix: str, content: Mapping[Any, Any], known: tuple[str, ...]) -> str | None:
    """What is said of a key that a file may not have; None: it has none."""
    extra = next((key for key in content if key not in known), None)
    return None if extra is None else f"{prefix}{extra} is unknown; there are {', '.join(known)}"


def given(content: Mapping[Any, Any], name: str) -> str:
    """A value of a file for a message; "missing" where it is not there."""
    return repr(content[name]) if name in content else "missing"
