"""LoRA adapters: folders that hold what was trained beside a base model, and often nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from vlmfix.models.faults import ADAPTER


def adapter_file(source: str, revision: str | None) -> Path | None:
    """The configuration of the adapter that a folder or hub id holds; None: it holds no adapter, or whole
    weights beside it.
    """
    if Path(source).is_dir():
        path = Path(source, ADAPTER)
        return path if path.is_file() and not any(Path(source).glob("model*.safetensors")) else None
    try:
        found = cached_file(source, ADAPTER, revision=revision)
    except (OSError, ValueError):
        return None  # there is none, or the network is down, which the model says best
    return None if found is None else Path(found)


def base_of(source: str, file: Path) -> str:
    """Name or folder of the base model of an adapter.

    Raises:
        ValueError: the configuration is broken, or names none.
        ImportError: PEFT is not installed.
        FileNotFoundError: there is no such folder.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is no JSON ({' '.join(str(error).split())}); download or copy the adapter again"
        ) from error
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(base, str) or not base:
        raise ValueError(f"{file} names no base model; write its name or folder to base_model_name_or_path")
    if importlib.util.find_spec("peft") is None:
        raise ImportError(
            f"{source!r} is an adapter for {base!r}, which needs PEFT: pip install peft, or merge it into "
            "its base (merge_and_unload) and save that"
        )
    beside = file.parent / base
    if base.startswith(".") and not Path(base).is_dir() and beside.is_dir():
        return str(beside)
    if not Path(base).expanduser().is_dir() and (base.startswith((".", "/", "~")) or base.count("/") != 1):
        raise FileNotFoundError(
            f"the base model {base!r} of the adapter {source!r} is not there; write the right name or folder "
            f"to base_model_name_or_path in {file}"
        )
    return base


def add_adapter(model: PreTrainedModel, source: str, revision: str | None) -> dict[str, Any]:
    """Put an adapter onto its base model; the report of transformers, as `check_weights` reads it."""
    options: dict[str, Any] = {} if revision is None else {"adapter_kwargs": {"revision": revision}}
    loaded: dict[str, Any] = model.load_adapter(source, ignore_mismatched_sizes=True, **options).to_dict()
    return loaded
