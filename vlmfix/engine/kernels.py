"""Names under which the engine hangs on a model, and the plain attention of its modeling file."""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import Tensor, nn

from vlmfix.errors import UnsupportedError

NAME = "vlmfix"
"""Of the attention function in the registries of transformers."""

ATTRIBUTE = "_vlmfix_attachment"
"""Of a decoder and its attention modules, while a method is attached."""


def eager_function(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The plain attention that a modeling file falls back to; it has no entry in the registry.

    Raises:
        UnsupportedError: the modeling file of `module` has none.
    """
    function: Callable[..., tuple[Tensor, Tensor | None]] | None = getattr(
        sys.modules[type(module).__module__], "eager_attention_forward", None
    )
    if function is None:
        raise UnsupportedError(
            f"{type(module).__name__} has no eager attention in the form of the attention registry, through "
            "which methods see a model; where it has another kernel, load it with attn_implementation='sdpa'"
        )
    return function
