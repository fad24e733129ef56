"""Loading checkpoints: the embedded tiny models, local folders and hub ids, with or without torchvision."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from vlmfix.models.adapters import adapter_file, add_adapter, base_of
from vlmfix.models.embedded import DEFAULT_MODEL, EMBEDDED
from vlmfix.models.faults import check_small_files, telling_faults, template_fault
from vlmfix.models.markup import image_markup
from vlmfix.models.weights import check_weights
from vlmfix.settings import user_path

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a vision-language model and its processor, ready for `generate`.

    Args:
        name_or_path: `"tiny-llava"` or `"tiny-qwen2.5-vl"` (in the package, no download), a folder, or a hub
            id; of a whole checkpoint, or of a LoRA adapter (needs `pip install peft`), whose base model is
            loaded first and gives what the adapter lacks.
        dtype: a torch dtype or its name; "auto" takes that of the checkpoint, float32 for the embedded
            models.
        device_map: as in transformers, for instance "cuda" or "auto"; None loads on the CPU.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the checkpoint; off unless you say so.
        allow_missing: warn, in place of an error, where weights are missing (and thus random), of another
            shape, not part of the model, or not finite.
        **kwargs: for `AutoModelForImageTextToText.from_pretrained`, for instance `attn_implementation`.

    Returns:
        The model in evaluation mode, and the processor.

    Raises:
        FileNotFoundError: there is no such folder, or the hub cannot be reached or has no such model.
        ValueError: the dtype is unknown, the checkpoint is not an image-text-to-text model, or something is
            wrong with its weights or files; the message names it.
        ImportError: a package is missing that the checkpoint needs.
    """
    source = resolve(name_or_path)
    if dtype == "auto" and str(name_or_path) in EMBEDDED:
        dtype = torch.float32  # half precision only saves space in the package; on CPUs it is slow
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    adapter = adapter_file(source, revision)
    if adapter is not None:
        return _adapted(
            source,
            adapter,
            dtype=dtype,
            device_map=device_map,
            allow_missing=allow_missing,
            **common,
            **kwargs,
        )
    options = {"dtype": _dtype(dtype), "device_map": device_map, "use_safetensors": True, **common, **kwargs}
    options |= {
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }  # what is left out is refused here
    with telling_faults(source, revision):
        read: Any = AutoModelForImageTextToText.from_pretrained(source, **options)
        model, loaded = read  # a pair, with output_loading_info
    check_weights(model, loaded, str(name_or_path), allow_missing=allow_missing)
    with telling_faults(source, revision, "the processor of "):
        processor = load_processor(source, **common)
    check_small_files(source, revision)
    check_processor(model, processor, source)
    return model.eval(), processor


def _adapted(source: str, file: Path, *, allow_missing: bool, **options: Any) -> tuple[Any, Any]:
    """The base model of a LoRA adapter with the adapter, and the processor of either."""
    base = base_of(source, file)
    own = {name: options.pop(name) for name in ("revision", "trust_remote_code")}
    trusted = own["trust_remote_code"]
    try:
        model, processor = load(base, allow_missing=allow_missing, trust_remote_code=trusted, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the base model of the adapter {source!r}: {error}") from error
    with telling_faults(source, own["revision"], "the adapter "):
        loaded = add_adapter(model, source, own["revision"])
    check_weights(model, loaded, f"{source} (an adapter for {base})", allow_missing=allow_missing)
    if any((file.parent / name).is_file() for name in _PROCESSOR_FILES):
        with telling_faults(source, own["revision"], "the processor of "):
            processor = load_processor(source, **own)
        check_processor(model, processor, source)
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
        processor: ProcessorMixin = AutoProcessor.from_pretrained(source, **kwargs)
        return processor
    except (ImportError, OSError):  # no torchvision, or saved where there was none
        stock: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(source, **kwargs)), None)
        if stock is None:  # types that borrow another's name it in the file
            name = ProcessorMixin.get_processor_dict(source, **kwargs)[0].get("processor_class", "")
            stock = getattr(transformers, name, None)
        if stock is None or "video_processor" not in stock.get_attributes():
            raise
    return image_only(stock).from_pretrained(source, **kwargs)


def check_processor(model: PreTrainedModel, processor: Any, source: str) -> None:
    """Refuse a processor that is none or another model's, and give its tokenizer a token for padding.

    Raises:
        ValueError: with the reason and the remedy.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"{source} gives a {type(processor).__name__} and no processor of images and text; copy "
            f"{' and '.join(_PROCESSOR_FILES[:2])} of the base model there"
        )
    own, expected = getattr(processor, "image_token_id", None), getattr(model.config, "image_token_id", None)
    # Gemma-3 and Ovis2 call another token their image token than that which stands for a picture.
    if (
        own is not None
        and expected is not None
        and own != expected
        and image_markup(processor, expected) is None
    ):
        raise ValueError(
            f"the processor of {source} marks images by token {own}, the model by token {expected}; they do "
            "not belong together: copy the processor files of the model's own checkpoint"
        )
    template = processor.chat_template or tokenizer.chat_template
    fault = template_fault(template) if isinstance(template, str) else None
    if fault is not None:
        raise ValueError(f"the chat template of {source} is broken ({fault}); replace chat_template.jinja")
    if tokenizer.pad_token is None:  # what stands there is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token


def image_only(stock: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """`stock` for images and text alone: transformers reads the components from the names in `__init__`."""
    components = stock.get_attributes()
    options = set(inspect.signature(stock.__init__).parameters) - set(components)
    absent = dict.fromkeys(set(components) - {"image_processor", "tokenizer"})

    class Kept(ProcessorMixin):
        """What `stock.__init__` hands on, in its own order, without the components that are not there."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            given = {**dict(zip(components, args, strict=False)), **kwargs}
            kept = {name: value for name, value in given.items() if name not in absent}
            super().__init__(**kept)  # type: ignore[no-untyped-call]  # transformers wraps it

    class ImageOnly(stock, Kept):  # type: ignore[valid-type,misc]  # a base that is known at run time
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
            super().__init__(image_processor=image_processor, tokenizer=tokenizer, **absent, **kwargs)

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            given = {**processor_dict, **kwargs}
            return cls(*args, **{name: value for name, value in given.items() if name in options})

    # What is saved are the arguments in the signature.
    stock_parameters = inspect.signature(stock.__init__).parameters
    own_parameters = list(inspect.signature(ImageOnly.__init__).parameters.values())
    kept = [stock_parameters[name] for name in stock_parameters if name in options - {"self", "kwargs"}]
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in kept]
    signature = inspect.Signature([*own_parameters[:3], *named, own_parameters[3]])
    ImageOnly.__init__.__signature__ = signature  # type: ignore[attr-defined]
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
