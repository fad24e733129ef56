"""Whether a model got all of its weights, and whether they are numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Names that a message gives of each kind.
_NAMED = 3


def check_weights(
    model: PreTrainedModel, loaded: Mapping[str, Any], name: str, *, allow_missing: bool = False
) -> None:
    """Refuse a model some of whose weights are random, left in the file, or not finite.

    Weights that are tied, that the class ignores on purpose, or that a quantiser makes by itself are no fault
    (transformers takes them off its report); what a quantised checkpoint has to spare is worth a warning.

    Args:
        model: as it was loaded.
        loaded: the report of transformers, with `missing_keys`, `unexpected_keys` and `mismatched_keys`.
        name: by which it was loaded.
        allow_missing: warn in place of the refusal.

    Raises:
        ValueError: with the first names and the counts.
    """
    missing, unexpected = sorted(loaded["missing_keys"]), sorted(loaded["unexpected_keys"])
    shapes = [
        f"{key} ({tuple(in_file)} in the file, {tuple(in_model)} in the model)"
        for key, in_file, in_model in sorted(loaded["mismatched_keys"], key=lambda each: str(each[0]))
    ]
    broken = [] if allow_missing and (missing or shapes) else _not_finite(model)
    faults = [
        _fault("missing, which would be random", missing),
        _fault("of another shape, which would be random", shapes),
        _fault("not part of the model, which would be ignored", unexpected),
        _fault(f"not finite in {str(model.dtype).removeprefix('torch.')} (NaN or infinite)", broken),
    ]
    found = [fault for fault in faults if fault]
    if not found:
        return
    spare = unexpected and not (missing or shapes or broken)
    message = f"{name!r}: {'; '.join(found)}"
    if allow_missing or (spare and getattr(model.config, "quantization_config", None) is not None):
        warnings.warn(message, stacklevel=3)
        return
    remedy = "download the checkpoint again, or check that its config.json belongs to these files"
    if broken and model.dtype == torch.float16:
        remedy = f"load it in bfloat16 or float32 (--dtype), or {remedy}"
    raise ValueError(f"{message} - {remedy}; to go on all the same, pass allow_missing (--allow-missing)")


def _fault(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = len(names) - _NAMED
    listed = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{len(names)} weight{'s' if len(names) > 1 else ''} {what}: {listed}"


def _not_finite(model: PreTrainedModel) -> list[str]:
    """Names of weights with NaN or infinity; of what is offloaded nothing is known before it is used.

    A sum says it in one pass over the memory; only where it is not finite every number is looked at.
    """
    named = [(name, each.detach()) for name, each in _floats(model)]
    sums: dict[torch.device, list[Tensor]] = {}
    places: dict[torch.device, list[int]] = {}
    for index, (_, tensor) in enumerate(named):
        wide = tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.bfloat16)
        sums.setdefault(tensor.device, []).append(wide.sum(dtype=torch.float32))
        places.setdefault(tensor.device, []).append(index)
    suspects = [
        named[places[device][index]]
        for device, values in sums.items()
        for index in (~torch.stack(values).isfinite()).nonzero().flatten().tolist()
    ]
    return [name for name, tensor in suspects if not bool(tensor.float().isfinite().all())]


def _floats(model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
    for name, value in model.state_dict().items():
        plain = isinstance(value, Tensor) and not hasattr(value, "__tensor_flatten__")
        if plain and value.is_floating_point() and not value.is_meta:
            yield name, value
