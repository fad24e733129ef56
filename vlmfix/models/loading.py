"""Loading checkpoints: the embedded tiny models, local folders and hub ids, with or without torchvision."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from vlmfix.settings import user_path

EMBEDDED = ("tiny-llava", "tiny-qwen2.5-vl")
DEFAULT_MODEL = EMBEDDED[0]


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a vision-language model and its processor, ready for `generate`.

    Args:
        name_or_path: `"tiny-llava"` or `"tiny-qwen2.5-vl"` (in the package, no download), a folder, or a hub
            id.
        dtype: a torch dtype or its name; "auto" takes that of the checkpoint, float32 for the embedded
            models.
        device_map: as in transformers, for instance "cuda" or "auto"; None loads on the CPU.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the checkpoint; off unless you say so.
        **kwargs: for `AutoModelForImageTextToText.from_pretrained`, for instance `attn_implementation`.

    Returns:
        The model in evaluation mode, and the processor.

    Raises:
        FileNotFoundError: there is no such folder, or the hub cannot be reached or has no such model.
        ValueError: the dtype is unknown, or the checkpoint is not an image-text-to-text model.
    """
    source = resolve(name_or_path)
    if dtype == "auto" and str(name_or_path) in EMBEDDED:
        dtype = torch.float32  # half precision only saves space in the package; on CPUs it is slow
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    options = {"dtype": _dtype(dtype), "device_map": device_map, "use_safetensors": True, **common, **kwargs}
    try:
        model = AutoModelForImageTextToText.from_pretrained(source, **options)
        processor = load_processor(source, **common)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot load {str(name_or_path)!r}: {_first_words(error)} - check the name and the network, or "
            f"download the checkpoint where there is one ('hf download {name_or_path}') and pass its folder; "
            f"{DEFAULT_MODEL!r} needs no download"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{str(name_or_path)!r} is no image-text-to-text model that transformers knows: "
            f"{_first_words(error)}"
        ) from error
    return model.eval(), processor


def resolve(name_or_path: str | Path) -> str:
    """Folder of an embedded model; any other name as it is.

    Raises:
        FileNotFoundError: it looks like a path, and nothing is there.
    """
    name = str(name_or_path)
    if name in EMBEDDED:
        return str(Path(__file__).parent / name)
    looks_local = isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") != 1
    path = user_path(name)
    if path.is_dir():
        return str(path)
    if looks_local:
        raise FileNotFoundError(
            f"no model {name!r}: it is neither an embedded model ({', '.join(EMBEDDED)}), nor a folder, nor "
            "a hub id such as 'llava-hf/llava-1.5-7b-hf'"
        )
    return name


def load_processor(source: str, **kwargs: Any) -> ProcessorMixin:
    """The processor of a checkpoint, for images only where torchvision is missing and the stock one needs it.

    Args:
        source: a folder or a hub id.
        **kwargs: for `from_pretrained`.
    """
    try:
        return AutoProcessor.from_pretrained(source, **kwargs)
    except ImportError:
        stock = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(source, **kwargs))]
        if "video_processor" not in stock.get_attributes():
            raise
    return image_only(stock).from_pretrained(source, **kwargs)


def image_only(stock: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """`stock` without its video processor: transformers reads the components from the names in `__init__`."""
    options = set(inspect.signature(stock.__init__).parameters) - set(stock.get_attributes())

    class ImageOnly(stock):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **kwargs)

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            given = {**processor_dict, **kwargs}
            return cls(*args, **{name: value for name, value in given.items() if name in options})

    ImageOnly.__name__ = ImageOnly.__qualname__ = stock.__name__
    return ImageOnly


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto":
        return dtype
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(
            f"unknown dtype {str(dtype)!r}, or one that no model computes in; use float32, bfloat16, float16 "
            "or auto"
        )
    return found


def _first_words(error: Exception) -> str:
    """The message of transformers on one line, without its long lists."""
    return " ".join(str(error).split())[:200].rstrip(" .")
