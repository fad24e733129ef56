"""Key of a run, everything that changes an answer: model, processor, method, decoding, library."""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tokenizers
import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin

import vlmfix
from vlmfix.evaluation.files.hashing import digest, plain
from vlmfix.evaluation.files.readers import sha256_of
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.inference.decoding import set_aside
from vlmfix.models.loading import resolve
from vlmfix.models.profiles import find_profile
from vlmfix.models.structure import text_decoder

# Larger checkpoints are read in samples: at this many places of each file.
_WHOLE_BYTES = 2_000_000_000
_PLACES, _PLACE_BYTES = 64, 1 << 20
# Weights, configurations, tokenizers and chat templates.
_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}


def run_key(
    *,
    task: str,
    data: Mapping[str, Mapping[str, Any]],
    protocol: Protocol,
    model: Mapping[str, Any],
    methods: Iterable[Mapping[str, Any]],
    seed: int,
    prompt_change: str = "",
    decoding: Mapping[str, Any] | None = None,
    calibrated_on: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The key of a run: what its answers depend on, apart from the single samples.

    Args:
        task: its name.
        data: the files it was made of, with their SHA-256.
        protocol: which fixes prompt and decoding.
        model: see `model_identity`.
        methods: see `method_identity`, in the order of attachment.
        seed: of sampling.
        prompt_change: what the methods change of the protocol's prompt, for its id, such as "+bias-yes".
        decoding: arguments of `model.generate` in the place of those of the protocol; none have no part.
        calibrated_on: runs that a baseline was made to match, by what it takes from them.
    """
    key = {
        "library": vlmfix.__version__,
        **key_of_data(task, data, protocol, prompt_change),
        "model": dict(model),
        "methods": list(methods),
        "seed": seed,
    }
    if decoding:
        key["decoding"] = plain(decoding)
    return key if calibrated_on is None else key | {"calibrated_on": dict(calibrated_on)}


def key_of_data(
    task: str, data: Mapping[str, Mapping[str, Any]], protocol: Protocol, prompt_change: str = ""
) -> dict[str, Any]:
    """The part of `run_key` that says what is asked, and how."""
    fields = protocol.settings | {"id": f"{protocol.id}{prompt_change}"}
    return {
        "task": {"name": task, "data": {role: _content(used) for role, used in data.items()}},
        "protocol": plain(fields),
    }


def model_identity(model: PreTrainedModel, processor: ProcessorMixin, name: str) -> dict[str, Any]:
    """What is to be known of a loaded model, to the weights.

    Args:
        model: as it was loaded.
        processor: with it.
        name: by which it was loaded.
    """
    config = model.config
    template = processor.chat_template or processor.tokenizer.chat_template
    quantization = getattr(config, "quantization_config", None)
    key: dict[str, Any] = plain(
        {
            "id": name,
            "revision": getattr(config, "_commit_hash", None) or fingerprint(Path(resolve(name))),
            "class": type(model).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": getattr(quantization, "to_dict", lambda: quantization)(),
            "attention": {
                "text": text_decoder(model).config._attn_implementation,
                "vision": getattr(getattr(config, "vision_config", None), "_attn_implementation", None),
            },
            "generation_config": {
                key: value
                for key, value in model.generation_config.to_diff_dict().items()
                if key not in ("transformers_version", "_from_model_config")
            },
            "generation_config_set_aside": set_aside(model),
            "processor": {
                "class": type(processor).__name__,
                "image_processor": type(processor.image_processor).__name__,
                "settings": processor.image_processor.to_dict(),
            },
            "chat_template": None if template is None else hashlib.sha256(str(template).encode()).hexdigest(),
        }
    )
    return key


def method_identity(method: vlmfix.Method, model: PreTrainedModel) -> dict[str, Any]:
    """Name and complete parameters of a method, those from profiles included, and files by their content; of
    another package, its code.

    Raises:
        ValueError: a value is missing or does not fit the model.
    """
    profile = find_profile(model)
    resolved = method if method.is_identity else method.resolved(model.config, profile)
    parameters = resolved.parameters
    for name in resolved.parameter_files:
        if parameters[name] is not None and not method.is_identity:
            parameters[name] = f"sha256:{sha256_of(Path(parameters[name]).expanduser())}"
    key: dict[str, Any] = plain({"name": method.name, "parameters": parameters} | _foreign_code(type(method)))
    return key


def _foreign_code(method: type[vlmfix.Method]) -> dict[str, str]:
    """A digest of the files of a method that the version of vlmfix says nothing about."""
    modules = [cls.__module__ for cls in method.__mro__ if issubclass(cls, vlmfix.Method)]
    foreign = {module for module in modules if module.partition(".")[0] != "vlmfix"}
    files = {getattr(sys.modules.get(module), "__file__", None) for module in foreign}
    return {"code": digest(sorted(sha256_of(file) for file in files if file))} if foreign else {}


def environment(model: PreTrainedModel) -> dict[str, Any]:
    """Versions and devices, which ought not to change an answer."""
    device = model.device
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


@functools.cache
def fingerprint(folder: Path) -> str | None:
    """A digest over the weights and configuration of a checkpoint folder; None if it is no folder.

    Weights of more than 2 GB are read at 64 places a file.
    """
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    whole = sum(path.stat().st_size for path in files) <= _WHOLE_BYTES
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if whole or size <= _PLACES * _PLACE_BYTES:
                for block in iter(lambda: file.read(_PLACE_BYTES), b""):
                    digest.update(block)
            else:
                for place in range(_PLACES):
                    file.seek(place * (size - _PLACE_BYTES) // (_PLACES - 1))
                    digest.update(file.read(_PLACE_BYTES))
    return f"sha256:{digest.hexdigest()}" if whole else f"sampled-sha256:{digest.hexdigest()}"


def _content(used: Mapping[str, Any]) -> dict[str, Any]:
    """What was read, wherever it lay."""
    return {name: value for name, value in used.items() if name != "file"}
