"""The key and value cache in calls and outputs of a model, whatever a version of transformers calls it.

It is read by its type, and written under the name that the forward of the class takes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import transformers
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.utils.generic import ModelOutput

from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import attention_layers, attention_of, text_decoder

# The names that transformers has given it, the newest first; both are unlike every other argument.
_NAMES = ("cache", "past_key_values")


@functools.cache
def _name_in(kind: type[nn.Module]) -> str | None:
    """What the forward of a class calls the cache; None: it is not known."""
    for base in kind.__mro__:
        parameters = inspect.signature(base.__dict__.get("forward", kind.forward)).parameters
        known = [name for name in _NAMES if name in parameters]
        typed = [name for name, parameter in parameters.items() if "Cache" in str(parameter.annotation)]
        if known or typed:
            return known[0] if len(known) == 1 and typed in ([], known) else None
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            return None
    return None  # only subclasses that pass all arguments on


def cache_name(module: nn.Module) -> str:
    """What the forward of a module calls the cache.

    Raises:
        UnsupportedError: under none of the known names, or under more than one.
    """
    name = _name_in(type(module))  # type: ignore[arg-type]
    if name is None:
        raise UnsupportedError(
            f"{type(module).__name__}.forward of transformers {transformers.__version__} takes its cache "
            f"under no single one of the names {', '.join(_NAMES)}, so that methods could not tell a prompt "
            "from a decode step; use a version of transformers that vlmfix was tested with"
        )
    return name


def check_cache_names(model: PreTrainedModel) -> None:
    """Refuse a model whose parts do not all take the cache under one known name.

    Raises:
        UnsupportedError: with the names that were found.
    """
    decoder = text_decoder(model)
    attentions = [attention_of(decoder, layer) for layer in attention_layers(decoder)]
    kinds = dict.fromkeys(type(each) for each in (model, decoder, *decoder.layers, *attentions))
    names = {kind.__name__: _name_in(kind) for kind in kinds}  # type: ignore[arg-type]
    if None in names.values() or len(set(names.values())) != 1:
        found = ", ".join(f"{kind}: {name or 'none that is known'}" for kind, name in names.items())
        raise UnsupportedError(
            f"transformers {transformers.__version__} passes the cache of {type(model).__name__} under names "
            f"that vlmfix cannot follow ({found}), so that methods could not tell a prompt from a decode "
            "step; use a version of transformers that vlmfix was tested with"
        )


def named_arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a call of a method of a class, all by their names."""
    if not args:
        return dict(kwargs)
    _, *names = inspect.signature(function).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}


def read_cache(mapping: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call, or in the output of a model; None: there is none.

    What stands under a known name and is no `Cache` comes back as it is, to be refused.

    Raises:
        UnsupportedError: there are several.
    """
    found = {id(value): (name, value) for name, value in mapping.items() if isinstance(value, Cache)}
    if len(found) > 1:
        names = ", ".join(name for name, _ in found.values())
        raise UnsupportedError(
            f"there are several caches in one call ({names}), of which the model of transformers "
            f"{transformers.__version__} fills one; pass a single one, under the name that its forward takes"
        )
    if found:
        return next(iter(found.values()))[1]
    return next((mapping[name] for name in _NAMES if mapping.get(name) is not None), None)


def without_cache(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call less the cache."""
    return {
        name: value for name, value in kwargs.items() if name not in _NAMES and not isinstance(value, Cache)
    }


def with_cache(module: nn.Module, kwargs: Mapping[str, Any], cache: Cache | None) -> dict[str, Any]:
    """Arguments of a call of `module` with this cache in place of any other.

    Raises:
        UnsupportedError: it is not known under which name the module takes it.
    """
    return without_cache(kwargs) | {cache_name(module): cache}


def record(cache: Cache) -> None:
    """Let layers with a window keep what leaves it, for tokens to be taken back, until `stop_recording`."""
    for layer in cache.layers:
        if getattr(layer, "is_sliding", False) and hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()


def stop_recording(cache: Cache) -> None:
    """End `record`."""
    for layer in cache.layers:
        if "record_past" in vars(layer):
            vars(layer)["record_past"] = False


def write_cache(output: ModelOutput, cache: Cache) -> None:
    """Put a cache into an output of a model, in the place of the one that it has."""
    name = next(name for name, value in output.items() if isinstance(value, Cache))
    setattr(output, name, cache)
