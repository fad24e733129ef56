"""Images encoded once for several prompts about them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vlmfix.engine import compatibility, kernels
from vlmfix.engine.callers import turns_of
from vlmfix.engine.capabilities import edits_encoder, reads_encoder
from vlmfix.engine.kept_readings import kept_readings
from vlmfix.engine.state import Encoded
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import text_decoder

PIXELS = "pixel_values"
VIDEO_PIXELS = "pixel_values_videos"
_VIDEO_GRIDS = "video_grid_thw"
_INJECTED = "deepstack_features"
# Beside it, the first dimension of the pixels counts prompts, and the second one their images.
_ROW_MASK = "pixel_attention_mask"


@contextmanager
def cached_vision(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, no image is encoded twice in a pass, nor if it was part of the pass before.

    Images are compared by value, so that a changed pixel or grid is encoded anew. Under a method that watches
    or changes the encoder (`ReadsVisionAttention`, `EditsVisionEncoder`), and in other threads, all are
    encoded. In a block of `keep_readings`, images that were encoded in passes long before are known as well.

    Args:
        model: an image-text-to-text model of transformers; it leaves the block as it entered.
    """
    model = compatibility.stock_model(model)
    with turns_of(model).block("vlmfix.generate"):
        yield from _caching(model)


def _caching(model: PreTrainedModel) -> Iterator[None]:
    core: Any = model.base_model
    thread = threading.get_ident()
    encode = getattr(core, "get_image_features", None)
    if encode is None:  # nothing to keep, of an encoder-decoder for instance
        yield
        return
    names = list(inspect.signature(encode).parameters)
    kept = kept_readings(model)
    known: dict[bytes, Encoded] = {}
    form: _Form | None = None

    @functools.wraps(encode)
    def cached(*args: Any, **kwargs: Any) -> Any:
        nonlocal known, form
        attachment = vars(text_decoder(model)).get(kernels.ATTRIBUTE)
        watched = attachment is not None and any(
            edits_encoder(method) or reads_encoder(method) for method in attachment.methods
        )
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        images = None if watched or threading.get_ident() != thread else split_images(inputs)
        if images is None:
            return encode(*args, **kwargs)
        digests = _digests(images, inputs)
        missing = {
            digest: image for digest, image in zip(digests, images, strict=True) if digest not in known
        }
        if kept is not None:
            for digest in [*missing]:
                if (found := kept.features(digest)) is not None:
                    known[digest], form = found
                    del missing[digest]
        if missing:
            start = 0.0 if kept is None else kept.now()
            output = encode(**{**inputs, **_joined_inputs(list(missing.values()))})
            parts = _split_output(output) if _comes_apart(output) else []
            if len(parts) != len(missing):  # what was encoded does not come apart as it went in
                return encode(*args, **kwargs)
            known |= zip(missing, parts, strict=True)
            form = _Form.of(output)
            if kept is not None:
                seconds = (kept.now() - start) / len(parts)
                for digest, part in zip(missing, parts, strict=True):
                    kept.keep_features(digest, (part, form), seconds)
        known = {digest: known[digest] for digest in digests}
        assert form is not None
        return _joined_output(form, [known[digest] for digest in digests])

    attributes = vars(core)
    before = {name: attributes[name] for name in ("get_image_features",) if name in attributes}
    attributes["get_image_features"] = cached
    try:
        yield
    finally:
        del attributes["get_image_features"]
        attributes.update(before)


def encode_images(model: PreTrainedModel, images: Sequence[Mapping[str, Tensor]]) -> list[Encoded]:
    """What the vision encoder makes of images and videos, in their order.

    Args:
        model: an image-text-to-text model of transformers.
        images: see `split_images`.
    """
    encoded: list[Encoded] = []
    for are_videos, group in itertools.groupby(images, key=is_video):
        core: Any = model.base_model
        encode = core.get_video_features if are_videos else core.get_image_features
        inputs = _joined_inputs(list(group))
        pixels = inputs.pop(VIDEO_PIXELS if are_videos else PIXELS)
        parts = _split_output(encode(pixels, **inputs, return_dict=True))  # versions differ in its name
        if are_videos and model.config.model_type == "llava_onevision":
            parts = [_with_newline(each, core.image_newline) for each in parts]
        encoded += parts
    return encoded


def _with_newline(video: Encoded, newline: Tensor) -> Encoded:
    """A video of LLaVA-OneVision with the newline token after it, which old versions add only later."""
    newline = newline.to(video.features)
    if torch.equal(video.features[-1], newline):
        return video
    return video._replace(features=torch.cat([video.features, newline[None]]))


def with_pixel_values(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inputs of a model with the pixels of images under their usual name; Video-LLaVA has another one."""
    pixels = inputs.get("pixel_values_images")
    return inputs if pixels is None else {**inputs, PIXELS: pixels}


def pixels_of(image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of an image that show it: some models read it in two sizes, or crops of it beside it."""
    return {
        name: value
        for name, value in image.items()
        if PIXELS in name and value.is_floating_point() and "mask" not in name
    }


def shown_sizes(image: Mapping[str, Tensor], name: str) -> list[tuple[int, int]] | None:
    """Height and width of what each crop of pixels shows, without the padding below and to the right of it;
    None: a single one is there, and nothing says that it has any.

    Args:
        image: see `split_images`.
        name: of its pixels, `(..., channels, height, width)`; the crops are all before.
    """
    pixels, mask, sizes = image[name], image.get(_ROW_MASK), image.get("image_sizes")
    height, width = pixels.shape[-2:]
    if mask is not None and mask.shape == (*pixels.shape[:-3], height, width):
        rows = mask.bool().reshape(-1, height, width)
        found = torch.stack([rows.any(dim=2).sum(dim=1), rows.any(dim=1).sum(dim=1)], dim=1)
    elif sizes is not None and pixels.ndim == 4 and sizes.shape == (len(pixels), 2):
        if bool((sizes > sizes.new_tensor([height, width])).any()):
            return None  # those of the picture before it was resized
        found = sizes
    elif pixels.ndim == 4 and len(pixels) > 1:  # crops of several images, see `shown_images`
        return [(height, width)] * len(pixels)
    else:
        return None
    return [(int(tall), int(wide)) for tall, wide in found.tolist()]


def is_video(image: Mapping[str, Tensor]) -> bool:
    """Whether the tensors of `split_images` are those of a video."""
    return VIDEO_PIXELS in image


def split_images(inputs: Mapping[str, Any]) -> list[dict[str, Tensor]] | None:
    """The tensors of each image, as `get_image_features` takes them, then of each video, as
    `get_video_features` does; None: they do not come one an image.

    Where the images of a prompt come in one row (Idefics, SmolVLM), they count as one, without the empty ones
    that fill up the row.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    videos = {name: tensors.pop(name) for name in (VIDEO_PIXELS, _VIDEO_GRIDS) if name in tensors}
    if PIXELS not in tensors and VIDEO_PIXELS not in videos:
        return None
    images: list[dict[str, Tensor]] = []
    for given, pixels, grids in ((tensors, PIXELS, "image_grid_thw"), (videos, VIDEO_PIXELS, _VIDEO_GRIDS)):
        parts = _split(given, pixels, grids)
        if parts is None:
            return None
        images += parts
    return images


def _split(tensors: dict[str, Tensor], pixels: str, grids: str) -> list[dict[str, Tensor]] | None:
    """`tensors` one by one; None: those beside the pixels are of another number."""
    if pixels not in tensors:
        return []
    # Qwen-VL lists the patches of all images in one.
    sizes: Any = tensors[grids].prod(dim=-1).tolist() if grids in tensors else 1
    parts = tensors[pixels].split(sizes)
    others = {name: value for name, value in tensors.items() if name != pixels}
    if any(value.ndim == 0 or len(value) != len(parts) for value in others.values()):
        return None
    split = [
        {pixels: part} | {name: value[index][None] for name, value in others.items()}
        for index, part in enumerate(parts)
    ]
    return [_without_empty(image) for image in split] if _ROW_MASK in others else split


def _without_empty(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """The images of a prompt, without those that are 0 everywhere, which fill up its row."""
    if row[PIXELS].ndim != 5:
        return row
    shown = row[PIXELS][0].flatten(1).any(dim=1)
    return {
        name: value[:, shown] if value.shape[1:2] == shown.shape else value for name, value in row.items()
    }


def _joined_inputs(images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of several images as one call takes them; rows of fewer images are filled up by empty ones."""
    joined = {}
    for name in images[0]:
        parts = [image[name] for image in images]
        if _ROW_MASK in images[0] and images[0][PIXELS].ndim == 5:
            longest = max(part.shape[1] for part in parts)
            parts = [
                torch.cat([part, part.new_zeros(1, longest - part.shape[1], *part.shape[2:])], dim=1)
                for part in parts
            ]
        joined[name] = torch.cat(parts)
    return joined


def _digests(images: Sequence[dict[str, Tensor]], inputs: dict[str, Any]) -> list[bytes]:
    """The `_digest` of each; of neighbours that are equal, which costs less to see, one is made."""
    digests: list[bytes] = []
    before: dict[str, Tensor] = {}
    for image in images:
        is_equal = image.keys() == before.keys() and all(
            torch.equal(value, before[name]) for name, value in image.items()
        )
        digests.append(digests[-1] if is_equal else _digest(image, inputs))
        before = image
    return digests


def _digest(image: dict[str, Tensor], inputs: dict[str, Any]) -> bytes:
    """Equal for equal images that are to be encoded in the same way."""
    settings = {name: value for name, value in inputs.items() if not isinstance(value, Tensor)}
    digest = hashlib.blake2b(repr(sorted(settings.items(), key=str)).encode(), digest_size=16)
    for name, value in image.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _comes_apart(output: Any) -> bool:
    """Whether all that the model reads of what its vision encoder gave is known to be of single images."""
    others = set(output) - {"last_hidden_state", "pooler_output", "hidden_states", "attentions", _INJECTED}
    return getattr(output, "pooler_output", None) is not None and not others


def _split_output(output: Any) -> list[Encoded]:
    features = getattr(output, "pooler_output", None)
    if features is None:
        raise UnsupportedError(
            f"the vision encoder gives a {type(output).__name__} without pooler_output, so that the features "
            "of other images cannot be had"
        )
    if isinstance(features, Tensor) and features.ndim == 2:  # of all images, one after the other
        features = [features]
    sizes = [len(image) for image in features]
    layers = [layer.split(sizes) if isinstance(layer, Tensor) else layer for layer in _injected(output)]
    return [Encoded(image, [layer[index] for layer in layers]) for index, image in enumerate(features)]


class _Form(NamedTuple):
    """The form in which a model gives the features of images, without these.

    Args:
        output: its class.
        features: class of what holds those of all images.
        joined: of each layer in which features are injected, whether they are one tensor for all images.
    """

    output: Any
    features: Any
    joined: list[bool]

    @classmethod
    def of(cls, output: Any) -> _Form:
        joined = [isinstance(layer, Tensor) for layer in _injected(output)]
        return cls(type(output), type(output.pooler_output), joined)


def _joined_output(form: _Form, images: list[Encoded]) -> Any:
    """The output of the model for these images, in the form that it gave for others."""
    features: Any = [image.features for image in images]
    stacked = torch.stack(features) if form.features is Tensor else form.features(features)
    output = form.output(pooler_output=stacked)
    layers = zip(*(image.injected for image in images), strict=True)
    injected = [
        torch.cat(parts) if joined else parts for joined, parts in zip(form.joined, layers, strict=False)
    ]
    if injected:
        setattr(output, _INJECTED, injected)
    return output


def _injected(output: Any) -> list[Any]:
    return getattr(output, _INJECTED, None) or []
