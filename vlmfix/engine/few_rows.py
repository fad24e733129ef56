"""Linear layers that read their weights once for the few rows that branches and early exits add, on a CPU.

With two to four rows, the product of torch with MKL takes about as long on a CPU of AMD as that many products
with one row; taken the other way round, weights times rows, it takes as long as one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# At most so many rows of a layer with as many outputs as inputs or more, and of one with fewer.
_MOST, _MOST_INWARDS = 4, 3


def install(modules: Iterable[Any], stock_rows: Callable[[], int], undo: ExitStack) -> None:
    """Let the linear layers of modules take few rows in this way, where that is faster.

    Args:
        modules: of the model; what is none is passed over.
        stock_rows: how many rows the stock model would read at this moment; not more of them are left to it,
            so that they are what they were to the bit.
        undo: gives the layers their own forward back.
    """
    if not helps():
        return
    for layer in (each for module in modules if isinstance(module, nn.Module) for each in module.modules()):
        # Another class computes in its own way, and what was put on an instance has its reason.
        if type(layer) is nn.Linear and "forward" not in vars(layer):
            vars(layer)["forward"] = functools.partial(_forward, layer, stock_rows)
            undo.callback(vars(layer).pop, "forward")


@functools.cache
def helps() -> bool:
    """Whether this machine is one where it was measured to be faster."""
    if not torch.backends.mkl.is_available():
        return False
    try:
        found = re.search(r"^vendor_id\s*: (\w+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        return False
    return found is not None and found[1] == "AuthenticAMD"


def _forward(layer: nn.Linear, stock_rows: Callable[[], int], input: Tensor) -> Tensor:
    weight = layer.weight
    rows = input.numel() // max(input.shape[-1], 1)
    most = _MOST if layer.out_features >= layer.in_features else _MOST_INWARDS
    is_plain = type(weight) is nn.Parameter and weight.dtype == input.dtype == torch.float32
    if 1 < rows <= most and is_plain and input.device.type == "cpu" and rows > stock_rows():
        return few_rows(input, weight, layer.bias)
    return nn.functional.linear(input, weight, layer.bias)


def few_rows(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, computed as weights times rows.

    Args:
        input: `(..., inputs)`.
        weight: `(outputs, inputs)`.
        bias: `(outputs,)` or none.

    Returns:
        `(..., outputs)`, contiguous.
    """
    found = (weight @ input.reshape(-1, input.shape[-1]).T).T.contiguous()
    if bias is not None:
        found = found + bias
    return found.view(*input.shape[:-1], -1)
