"""The model that options name."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging as transformers_logging

import vlmfix
from vlmfix.cli.console import err
from vlmfix.failures import is_foreign, is_out_of_memory, words
from vlmfix.models.embedded import EMBEDDED


def load_model(
    name: str,
    device: str,
    dtype: str,
    *,
    revision: str | None = None,
    allow_missing: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model and processor that the options name.

    Raises:
        ValueError: no such device or dtype, or something is wrong with the checkpoint.
        FileNotFoundError: no such model.
    """
    if not name.strip():
        raise ValueError(f"--model is {name!r}; name {', '.join(EMBEDDED)}, a folder or a hub id")
    if name in EMBEDDED or not err.is_terminal:
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        return vlmfix.load(
            name,
            dtype=dtype,
            device_map=_device_map(device),
            revision=revision,
            allow_missing=allow_missing,
        )
    except Exception as error:
        if not is_foreign(error) or is_out_of_memory(error):
            raise
        raise ValueError(
            f"cannot load {name!r} ({type(error).__name__}: {words(error)}); check its files"
        ) from error


def _device_map(device: str) -> str | None:
    """What transformers calls `device`; None is the CPU."""
    if device == "auto":
        return "auto" if torch.cuda.is_available() else None
    if device.partition(":")[0] == "meta":
        raise ValueError("--device meta holds no weights; use cpu, cuda, cuda:1 or auto")
    try:
        torch.empty(0, device=device)
    except Exception as error:  # backends that are not there raise what they like
        raise ValueError(f"--device {device} is not available here; use cpu, cuda, cuda:1 or auto") from error
    return None if device == "cpu" else device
