"""Pictures as a person sees them: opened, turned upright, and in the colours that a viewer shows."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError

from vlmfix.inference.colors import NotShownError, grey_bits, in_srgb

ImageLike = Image.Image | str | Path
"""A picture, or the path of one."""

Images = ImageLike | Sequence[ImageLike] | None
"""The pictures of one prompt, in the order in which the prompt shows them."""

_KINDS = "apng avif bmp gif heic heif jfif jp2 jpe jpeg jpg pgm png pnm ppm tif tiff webp"

IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
"""What counts as a picture in a folder; those that Pillow lacks a reader for are refused by name."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What stands at the beginning of files that Pillow does not know, and what helps.
_UNKNOWN = (
    (rb"", "it is empty; get it again"),
    (
        rb"....ftyp(avif|avis)",
        "it is AVIF, which this Pillow cannot read; convert it to PNG",
    ),
    (
        rb"....ftyp(hei|hev|mif1|msf1)",
        "it is HEIC, which Pillow cannot read; convert it to JPEG, or install pillow-heif, register its "
        "opener in Python and pass the opened picture",
    ),
    (rb"\s*(<\?xml.*)?<svg", "it is SVG, a drawing; convert it to PNG"),
    (rb"%PDF", "it is PDF; convert its page to PNG"),
    (rb"\s*<(!doctype html|html)", "it is a web page; download the picture itself"),
    (rb"version https://git-lfs", "it is a pointer of git LFS; fetch the file with 'git lfs pull'"),
)

# Pillow keeps its switch for files that are cut off, and Python its filters of warnings, for all threads.
_shared_settings = threading.Lock()


def open_images(images: Images) -> list[Image.Image]:
    """The pictures of one prompt in RGB with 8 bits a channel, as a person sees them.

    They are turned upright by their EXIF data, whether given as paths or as objects; objects stay as they
    are. Transparent parts lie over white, a colour profile is followed, CMYK without one is converted by the
    plain formula. 16 (or 12) bits are scaled by their full range, floating-point numbers only if they lie in
    [0, 1]. Of an animated file or one with pages, the first is shown, with a warning; an object stands where
    its owner left it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: this is neither a picture nor a path; a file is no image, is cut off, or holds more pixels
            than Pillow trusts (`PIL.Image.MAX_IMAGE_PIXELS`); a picture has no pixels, or numbers of which no
            one can tell the range.
    """
    return [_open(image) for image in listed(images)]


def listed(images: Images) -> list[ImageLike]:
    """The pictures of one prompt, one by one.

    Raises:
        ValueError: this is none of what `Images` says.
    """
    several = [] if images is None else [images] if isinstance(images, ImageLike) else images
    if not isinstance(several, Sequence) or isinstance(several, bytes | bytearray):
        raise ValueError(_wrong_kind(several))
    for image in several:
        if not isinstance(image, ImageLike):
            raise ValueError(_wrong_kind(image))
    return list(several)


def _wrong_kind(given: Any) -> str:
    kind = f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")
    remedy = "pass a PIL picture, a path, or a list of them"
    if isinstance(given, bytes | bytearray):
        remedy = "open it with PIL.Image.open(io.BytesIO(...)) and pass the picture"
    elif hasattr(given, "shape"):
        remedy = "make a picture of each with PIL.Image.fromarray (uint8, height x width x 3) and pass these"
    return f"images has a {kind}, which may be read in several ways; {remedy}"


def _open(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        file = getattr(image, "filename", "")
        origin = f" of {str(file)!r}" if file else ""
        return _as_seen(image, f"the picture{origin} ({image.mode}, {image.width} x {image.height} pixels)")
    path, name = Path(image), _shortened(str(image))
    if re.match(r"[A-Za-z][\w+.-]+://|data:", str(image)):
        raise ValueError(f"{name} is a URL, and nothing is downloaded; fetch the picture and pass its path")
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError:  # too long for a name
        is_file = is_folder = False
    if is_folder:
        raise FileNotFoundError(f"no image file {name}: it is a folder; pass the pictures in it")
    if not is_file:
        raise FileNotFoundError(f"no image file {name}; check the path")
    try:
        with _shared_settings, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            opened = Image.open(path)
    except MemoryError:
        raise
    except Exception as error:  # readers of image formats raise what they like
        raise ValueError(_unreadable(path, name, error)) from error
    with opened:
        if _has_more(opened):
            warnings.warn(f"{name} is animated or has several pages; the first is shown", stacklevel=2)
        return _as_seen(opened, name)


def _unreadable(path: Path, name: str, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(name, str(error))
    reason = f"{error}; replace or remove it"
    if isinstance(error, UnidentifiedImageError):
        reason = "Pillow does not know its format; replace or remove it"
        with path.open("rb") as file:
            head = file.read(1024)
        for beginning, known in _UNKNOWN:
            if re.match(beginning, head, re.DOTALL | re.IGNORECASE) if beginning else not head:
                reason = known
    return f"{name} is not a readable image: {reason}"


def _too_large(name: str, reason: str) -> str:
    return (
        f"{name} has too many pixels to be opened safely ({reason}); scale it down, or raise "
        "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 300 else f"{text[:60]}...{text[-20:]}")


def _has_more(opened: Image.Image) -> bool:
    """Whether a viewer would show more than this one, as it would not of the parts of MPO and PSD."""
    try:
        return opened.format not in ("MPO", "PSD") and bool(getattr(opened, "is_animated", False))
    except Exception:  # what follows is broken
        return False


def _as_seen(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if not width or not height:
        raise ValueError(f"{name} has no pixels, {width} x {height}; replace or remove it")
    if limit is not None and width * height > limit:
        raise ValueError(_too_large(name, f"{width} x {height}, the limit is {limit}"))
    try:
        bits = grey_bits(image)
        with _whole_files():
            image.load()
        colours, alpha = in_srgb(image, name, bits)
    except (MemoryError, NotShownError):
        raise
    except Exception as error:  # readers of image formats raise what they like
        raise ValueError(f"{name} is not a readable image: {error}; replace or remove it") from error
    if alpha is not None:
        flat = Image.new("RGB", colours.size, "white")
        flat.paste(colours, mask=alpha)
        colours = flat
    turn = _TURNS.get(_orientation(image))
    # Without profile and EXIF data, which would be followed anew when it is opened again.
    shown = Image.new("RGB", colours.size)
    shown.paste(colours)
    return shown if turn is None else shown.transpose(turn)


@contextmanager
def _whole_files() -> Iterator[None]:
    """Within the block, Pillow refuses files that are cut off, whatever another library told it."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _shared_settings:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF data, which viewers ignore
        return None
