"""What is wrong with the files of a checkpoint, when transformers could not load it and did not say what."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils.hub import cached_file

ADAPTER = "adapter_config.json"
_INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model*.bin", "adapter_model.bin", "*.pth", "*.pt", "*.ckpt")
# Configurations are smaller; what is larger fails by itself if it is broken.
_SMALL_FILE = 1 << 18
_AGAIN = "download or copy the checkpoint again"


@contextmanager
def telling_faults(source: str, revision: str | None, part: str = "") -> Iterator[None]:
    """Turn whatever the loading of a checkpoint raises into one line with the true cause.

    Args:
        source: a folder or a hub id.
        revision: branch, tag or commit of a hub id.
        part: what is being loaded of it, such as "the processor of "; "": the model.

    Raises:
        FileNotFoundError: the hub cannot be reached or has no such model, or a file is missing.
        ValueError: something is wrong with the checkpoint.
        ImportError: a package is missing.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300].rstrip(" .") or type(error).__name__
        head = f"cannot load {part}{source!r}"
        file = next(
            filter(None, (file_of(source, name, revision) for name in ("config.json", ADAPTER))),
            Path(source, "config.json"),
        )
        fault = None if part else _fault_of_type(file.parent)
        if fault is not None:
            raise ValueError(
                f"{source!r} is no image-text-to-text model that transformers knows: {fault}"
            ) from error
        fault = fault_of(file.parent) if file.parent.is_dir() else None
        if fault is None and "processor" in part and not _has_tokenizer(file.parent):
            fault = f"{file.parent} has no tokenizer.json; copy the tokenizer files of the base model there"
        names = ("preprocessor_config.json", "processor_config.json")
        has_any = any((file.parent / name).is_file() for name in names)
        if fault is None and "processor" in part and not has_any:
            missing = " and no ".join(names)
            fault = f"{file.parent} has no {missing}; copy the processor files of the base model there"
        if fault is not None:
            raise ValueError(f"{head}: {fault}") from error
        if isinstance(error, ImportError):
            raise ImportError(f"{head}: {words}") from error
        if not isinstance(error, OSError):
            raise ValueError(f"{head}: {type(error).__name__}: {words}") from error
        remedy = (
            "check the files of this folder"
            if Path(source).is_dir()
            else "check the name and the network, or download the checkpoint where there is one ('hf "
            f"download {source}') and pass its folder; 'tiny-llava' needs no download"
        )
        raise FileNotFoundError(f"{head}: {words} - {remedy}") from error


def file_of(source: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a checkpoint, in its folder or downloaded; None: it is in neither."""
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    try:
        found = cached_file(source, name, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def _has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer*", "vocab*", "*.model", "merges.txt", "*.tiktoken")
    return not folder.is_dir() or any(any(folder.glob(name)) for name in names)


def _fault_of_type(folder: Path) -> str | None:
    """Why a checkpoint is of no class for images and text; None: it is of one."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = kind.get("model_type") if isinstance(kind, dict) else None
    if not isinstance(name, str):
        return None
    if "auto_map" in kind:
        return "it brings code of its own; pass trust_remote_code=True if you trust it"
    try:
        config = AutoConfig.for_model(name)
    except ValueError:
        return (
            f"model_type is {name!r}, which this version does not know; check config.json, or upgrade "
            "transformers"
        )
    except Exception:
        return None
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return None if known else f"model_type is {name!r}, of models without images or without text"


def check_small_files(source: str, revision: str | None = None) -> None:
    """Refuse a checkpoint with a broken file that transformers passes over in silence.

    Raises:
        ValueError: a configuration, such as generation_config.json, is no JSON; names the file.
    """
    file = file_of(source, "config.json", revision)
    fault = None if file is None else next(_json_files(file.parent, largest=_SMALL_FILE), None)
    if fault is not None:
        raise ValueError(f"cannot load {source!r}: {fault}")


def fault_of(folder: Path) -> str | None:
    """The first thing that is wrong with the files of a checkpoint folder, with the remedy; None: nothing
    that can be seen in them.
    """
    checks: tuple[Callable[[Path], Iterator[str]], ...] = (_configuration, _json_files, _weights, _templates)
    return next((fault for check in checks for fault in check(folder)), None)


def _configuration(folder: Path) -> Iterator[str]:
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER).is_file():
            return
        if not any(folder.iterdir()):
            yield f"{folder} is empty; {_AGAIN}"
        yield f"{folder} has no config.json; give the folder of a whole checkpoint, or {_AGAIN}"
        return
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return  # the next check says so
    if not isinstance(content, dict):
        yield f"{folder / 'config.json'} is no JSON object; {_AGAIN}"
    elif not isinstance(content.get("model_type"), str):
        yield f"{folder / 'config.json'} has no model_type; {_AGAIN}"


def _json_files(folder: Path, largest: float = math.inf) -> Iterator[str]:
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size > largest:
            continue
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            why = "it is empty" if path.stat().st_size == 0 else " ".join(str(error).split())
            yield f"{path} is no JSON ({why}); {_AGAIN}"


def _weights(folder: Path) -> Iterator[str]:
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            size = path.stat().st_size
            why = "it is empty" if size == 0 else f"{size} bytes; {' '.join(str(error).split())}"
            yield f"{path} is cut off or damaged ({why}); {_AGAIN}"
    index = folder / _INDEX
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            yield f"{index} has no weight_map; {_AGAIN}"
            return
        missing = sorted({str(name) for name in shards.values()} - {path.name for path in files})
        if missing:
            yield f"{folder / missing[0]} is missing ({len(missing)} of its files are); {_AGAIN}"
    elif not files:
        whole = (folder / "config.json").is_file()
        pickled = [path for pattern in _PICKLED for path in sorted(folder.glob(pattern))]
        partial = sorted(folder.rglob("*.incomplete"))
        if pickled:
            yield (
                f"{pickled[0]} is pickled, which may run code when it is read; only safetensors are loaded: "
                "convert it (load it where you trust it, and save_pretrained), or take a revision that has "
                "model.safetensors"
            )
        elif partial:
            yield f"{partial[0]} is a download that was interrupted; {_AGAIN}"
        else:
            yield f"{folder} has no {'model' if whole else 'adapter_model'}.safetensors; {_AGAIN}"


def _templates(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jinja")):
        try:
            fault = template_fault(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError) as error:
            fault = str(error)
        if fault is not None:
            yield f"{path} is no chat template ({fault}); {_AGAIN}"


def template_fault(template: Any) -> str | None:
    """What is wrong with the syntax of a chat template; None: nothing."""
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(str(template))
    except TemplateSyntaxError as error:
        unknown_tag = "generation" in str(error)  # transformers adds this one
        return None if unknown_tag else " ".join(f"line {error.lineno}: {error.message}".split())
    return None
