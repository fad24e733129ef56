"""The colours of a picture in 8 bits of sRGB, whatever its file calls them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_FULL = 255
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF

# Levels by which a colour may differ before a profile counts as another one than sRGB.
_SAME_COLOURS = 3


class NotShownError(ValueError):
    """A picture that was read and that nobody can show faithfully."""


def in_srgb(image: Image.Image, name: str, bits: int) -> tuple[Image.Image, Image.Image | None]:
    """Colours in RGB, and how opaque they are, in L; None: entirely.

    Args:
        image: a loaded picture.
        name: for messages.
        bits: see `grey_bits`.

    Raises:
        NotShownError: nobody can tell what its numbers mean, or Pillow lost it.
    """
    colours, alpha = _channels(image, name, bits)
    return _managed(colours, image.info.get("icc_profile"), name), alpha


def _channels(image: Image.Image, name: str, grey_bits: int) -> tuple[Image.Image, Image.Image | None]:
    """Colours in 8 bits, as L, RGB or CMYK, and how opaque they are; None: entirely."""
    mode, clear = image.mode, image.info.get("transparency")
    if mode in ("I", "F") or mode.startswith("I;16"):
        values = np.asarray(image)
        grey = Image.fromarray(_levels(image, values, name))
        alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        return grey, alpha if isinstance(clear, int) else None
    if mode == "LAB":
        return _lab(image, name), None
    if mode == "RGB" and isinstance(clear, tuple) and max(clear) > _FULL:
        raise NotShownError(
            f"{name} has 16 bits a channel and a transparent colour, of which Pillow keeps 8 bits; save "
            "it with 8 bits, or with an alpha channel"
        )
    if mode == "L" and isinstance(clear, int):
        clear = clear * _FULL // (2**grey_bits - 1)
        return image.convert("L"), image.point([0 if level == clear else 255 for level in range(256)])
    if image.has_transparency_data:
        shown = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        return shown.convert("RGB"), shown.getchannel("A")
    if mode == "CMYK":
        return image, None
    return image.convert("L" if mode in ("1", "L") else "RGB"), None


def _levels(image: Image.Image, values: np.ndarray, name: str) -> np.ndarray:
    """Grey levels from 0 to 255 of whole or floating-point numbers, `(height, width)`."""
    tags = getattr(image, "tag_v2", {})
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # false of NaN
            raise NotShownError(
                f"{name} holds floating-point numbers from {low:g} to {high:g}, and only those in [0, 1] "
                "have a known range; map them to 0 to 255 and save it with 8 bits"
            )
        levels = np.rint(values.astype(np.float64) * _FULL)
    else:
        full = 2 ** (tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 1
        # Formats whose readers scale to 16 bits, though Pillow gives them 32.
        is_scaled = image.mode != "I" or image.format in ("PNG", "PPM")
        if not is_scaled or low < 0 or high > full:
            raise NotShownError(
                f"{name} holds whole numbers of 32 bits from {low} to {high}, whose range is not known; map "
                "them to 0 to 255 and save it with 8 bits"
            )
        levels = (values.astype(np.int64) * _FULL + full // 2) // full
    return (_FULL - levels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else levels).astype(np.uint8)


def grey_bits(image: Image.Image) -> int:
    """Bits a pixel of a grey PNG, in which it counts its transparent level; 8 of one that is loaded."""
    rawmode = next((tile[3] for tile in getattr(image, "tile", ())), "")
    return int(rawmode[2:]) if rawmode in ("L;2", "L;4") else 8


def _lab(image: Image.Image, name: str) -> Image.Image:
    with _colour_management(name):
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        return _transformed(image, transform)


def _managed(colours: Image.Image, profile: Any, name: str) -> Image.Image:
    if isinstance(profile, bytes) and profile:
        with _colour_management(name):
            transform = _transform(profile, colours.mode)
            if transform is not None:
                return _transformed(colours, transform)
    return colours.convert("RGB")


def _transformed(image: Image.Image, transform: Any) -> Image.Image:
    shown = ImageCms.applyTransform(image, transform)
    assert shown is not None  # it is None in place
    return shown


@contextmanager
def _colour_management(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise NotShownError(
            f"{name} needs colour management, which this Pillow was built without; install a wheel of "
            "Pillow, or save the picture as sRGB"
        ) from error


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """From a colour profile to sRGB; None: it is sRGB, or broken, or of another kind of picture."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode == "CMYK":
        return transform
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*[steps] * len(mode), indexing="ij"), axis=-1)
    sample = Image.fromarray(grid.reshape(len(steps), -1, len(mode)).squeeze(axis=2 if mode == "L" else ()))
    plain, shown = (
        np.asarray(each, np.int16) for each in (sample.convert("RGB"), _transformed(sample, transform))
    )
    return None if np.abs(plain - shown).max() <= _SAME_COLOURS else transform
