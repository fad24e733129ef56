"""Which weights a model has: a digest of samples of all its tensors, the same however they were loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Values that are read of each tensor, evenly spaced.
_VALUES = 64
# What is smaller loses bits in float16.
_SMALL = 2.0**-14

_known: WeakKeyDictionary[nn.Module, tuple[Any, str | None]] = WeakKeyDictionary()


def weights_digest(model: nn.Module) -> str | None:
    """A digest over 64 values of every tensor of a model, adapters and quantised weights included.

    It takes milliseconds, and is kept until a tensor is replaced or written to. Values count as bfloat16, so
    that a checkpoint in half precision has the same digest in float32, bfloat16 and float16, on any device
    and offloaded, and one in float32 the same in float32 and bfloat16. Other weights with the same samples,
    and a write that goes round autograd (`weight.data.add_(...)`), are not noticed.

    Returns:
        The digest; None: some weights are nowhere, as those of a model on the device `meta`.
    """
    state = _state(model)
    known = _known.get(model)
    if known is None or known[0] != state:
        known = _known[model] = (state, _digest(model))
    return known[1]


def _state(model: nn.Module) -> Any:
    """Equal as long as no tensor was replaced or written to and the same adapters are active."""
    tensors = [
        (
            tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor),
            None if tensor.is_inference() else tensor._version,  # which those made in inference mode lack
        )
        for tensor in model.parameters()
    ]
    return tensors, _adapters(model)


def _adapters(model: nn.Module) -> list[Any]:
    """Which adapters act, in each module that has some (PEFT)."""
    return [
        (str(module.active_adapters), module.disable_adapters)
        for module in model.modules()
        if isinstance(getattr(type(module), "active_adapters", None), property)
    ]


def _digest(model: nn.Module) -> str | None:
    samples: list[Tensor] = []
    digest = hashlib.sha256(repr(_adapters(model)).encode())
    for name, value in model.state_dict().items():
        for tensor in _tensors(value):
            if tensor.is_meta:
                loaded = _offloaded(model, name)
                if loaded is None or loaded.is_meta:
                    return None
                tensor = loaded
            digest.update(f"{tuple(tensor.shape)} ".encode())
            flat = tensor.detach().reshape(-1)
            samples.append(flat[:: max(1, flat.numel() // _VALUES)][:_VALUES])
    for values in _on_cpu(samples):
        if values.is_floating_point():
            values = values.float().bfloat16().float()
            values = values.where(values.abs() >= _SMALL, 0.0)
        digest.update(values.contiguous().numpy().tobytes())
    return f"sampled-sha256:{digest.hexdigest()[:32]}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """The plain tensors in an entry of a state dict: quantised weights hold several, some in tuples."""
    if isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _tensors(getattr(value, name))
    elif isinstance(value, Tensor):
        yield value.int_repr() if value.is_quantized else value


def _offloaded(model: nn.Module, name: str) -> Tensor | None:
    """A weight that accelerate keeps elsewhere until it is needed; None: it does not."""
    module, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(module), "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights = getattr(each, "weights_map", None)
        if weights is not None:
            found: Tensor = weights[own]
            return found
    return None


def _on_cpu(samples: list[Tensor]) -> list[Tensor]:
    """The samples on the CPU, in one transfer for each device and dtype."""
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, values in enumerate(samples):
        places.setdefault((values.device, values.dtype), []).append(index)
    moved = list(samples)
    for indices in places.values():
        together = torch.cat([samples[index] for index in indices]).cpu()
        parts = together.split([samples[index].numel() for index in indices])
        for index, part in zip(indices, parts, strict=True):
            moved[index] = part
    return moved
