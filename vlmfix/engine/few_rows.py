"""Linear layers that read their weights once for the few rows that branches and early exits add, on a CPU.

On a CPU of AMD, the product of torch with MKL takes about as long with two to four rows as that many products
with one row, and up to five times as long as one with more. Two other forms take one to two times as long:
weights times rows, and for more rows or large weights a convolution of oneDNN that takes the weights as
pictures and the rows as its filters, block by block. In a compiled step, products row by row become one loop.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# At most so many rows by weights times rows, of a layer with as many outputs as inputs or more, and of one
# with fewer; not of more weights than this, 32 MiB.
_MOST, _MOST_INWARDS, _LARGE = 4, 3, 2**23

# At most so many rows in blocks of so many weights, which fit into the second-level cache; filters come in
# groups. With fewer blocks, torch does not give them to oneDNN.
_MOST_IN_BLOCKS, _BLOCK, _GROUP, _FEWEST_BLOCKS = 32, 2**16, 8, 16

# At most so many rows one by one in a compiled step.
_MOST_COMPILED = 6

_RUN = "_vlmfix_stock_rows"


class Run(Protocol):
    """What knows which rows belong to the stock model."""

    @property
    def stock_rows(self) -> int:
        """How many rows the stock model would read at this moment; not more of them are left to it, so that
        they are what they were to the bit."""


def install(modules: Iterable[Any], run: Run, undo: ExitStack) -> None:
    """Let the linear layers of modules take few rows in this way, where that is faster.

    Args:
        modules: of the model; what is none is passed over.
        run: whose passes they are.
        undo: makes the layers plain ones again.
    """
    if not helps():
        return
    for layer in (each for module in modules if isinstance(module, nn.Module) for each in module.modules()):
        # Another class computes in its own way, and what was put on an instance has its reason.
        if type(layer) is nn.Linear and "forward" not in vars(layer):
            vars(layer)[_RUN] = run
            undo.callback(vars(layer).pop, _RUN)
            layer.__class__ = FewRowsLinear
            undo.callback(setattr, layer, "__class__", nn.Linear)


class FewRowsLinear(nn.Linear):
    """A linear layer while it takes few rows in this way; a class, as a function that was put on an instance
    would be compiled anew in every block."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        rows = input.numel() // max(input.shape[-1], 1)
        is_plain = type(weight) is nn.Parameter and weight.dtype == input.dtype == torch.float32
        run: Run = vars(self)[_RUN]
        if 1 < rows <= _MOST_IN_BLOCKS and is_plain and input.device.type == "cpu" and rows > run.stock_rows:
            if torch.compiler.is_compiling() and rows <= _MOST_COMPILED:
                return row_by_row(input, weight, self.bias)
            most = _MOST if self.out_features >= self.in_features else _MOST_INWARDS
            if (rows > most or weight.numel() >= _LARGE) and has_blocks(weight):
                return in_blocks(input, weight, self.bias)
            if rows <= most:
                return few_rows(input, weight, self.bias)
        return nn.functional.linear(input, weight, self.bias)


@functools.cache
def helps() -> bool:
    """Whether this machine is one where it was measured to be faster."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        found = re.search(r"^vendor_id\s*: (\w+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        return False
    return found is not None and found[1] == "AuthenticAMD"


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


def row_by_row(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `few_rows`, for a compiler, which joins the products of the rows into one loop over the weights."""
    found = torch.stack([torch.mv(weight, row) for row in input.reshape(-1, input.shape[-1]).unbind()])
    if bias is not None:
        found = found + bias
    return found.view(*input.shape[:-1], -1)


def has_blocks(weight: Tensor) -> bool:
    """Whether weights `(outputs, inputs)` are contiguous and enough for `in_blocks`."""
    return weight.is_contiguous() and weight.shape[0] // _outputs_of_block(weight) >= _FEWEST_BLOCKS


def in_blocks(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `few_rows`, computed as a convolution over blocks of the weights.

    Each block is a picture of one pixel an output, each row a filter of one pixel; outputs that fill no block
    are computed apart.
    """
    rows, size = input.reshape(-1, input.shape[-1]), _outputs_of_block(weight)
    count, inputs = len(rows), weight.shape[1]
    filters = nn.functional.pad(rows, (0, 0, 0, -count % _GROUP))[:, :, None, None]
    blocks = len(weight) // size
    pictures = weight[: blocks * size].view(blocks, size, 1, inputs).permute(0, 3, 1, 2)
    found = nn.functional.conv2d(pictures, filters)  # (blocks, rows, size, 1)
    found = found[:, :count, :, 0].transpose(0, 1).reshape(count, -1)
    if len(weight) % size:
        found = torch.cat([found, nn.functional.linear(rows, weight[blocks * size :])], dim=1)
    found = found.contiguous()
    if bias is not None:
        found = found + bias
    return found.view(*input.shape[:-1], -1)


def _outputs_of_block(weight: Tensor) -> int:
    return max(_BLOCK // max(weight.shape[1], 1), 1)
