"""The pictures of a request, opened within its limits."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from vlmfix.inference.pictures import open_images
from vlmfix.serve.errors import RequestError
from vlmfix.serve.limits import SMALLEST_PICTURE

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
LONGEST = 200
"""Longer to shorter side: processors scale the shorter one up, and a strip would fill all memory."""


def look_at(files: Sequence[bytes], most: int) -> tuple[list[Image.Image], int]:
    """Pictures whose pixels are not decoded yet, and as how many pixels they count.

    Args:
        files: one a picture.
        most: pixels of all together.

    Raises:
        RequestError: a file is no picture of these formats (400), or there are too many pixels (413).
    """
    images: list[Image.Image] = []
    pixels = 0
    for number, file in enumerate(files, 1):
        try:
            image = Image.open(io.BytesIO(file), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise _too_many(most) from error
        except MemoryError:
            raise
        except Exception as error:  # readers of image formats raise what they like
            raise RequestError(
                400,
                f"picture {number} is not a readable {', '.join(FORMATS)} file; convert it",
                code="invalid_image",
                param="messages",
            ) from error
        if max(image.size) > LONGEST * min(image.size):
            raise RequestError(
                400,
                f"picture {number} is {image.width} x {image.height}; one side may be {LONGEST} times as "
                "long as the other",
                code="invalid_image",
                param="messages",
            )
        pixels += max(SMALLEST_PICTURE, image.width * image.height)
        if pixels > most:
            raise _too_many(most)
        images.append(image)
    return images, pixels


def decode(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures as a person sees them, see `open_images`.

    Raises:
        ValueError: one cannot be read.
    """
    decoded = open_images(images)
    for image in images:
        image.close()
    return decoded


def _too_many(most: int) -> RequestError:
    return RequestError(
        413,
        f"the pictures have more than {most} pixels together, of which each counts as {SMALLEST_PICTURE} or "
        "more; scale them down, or send fewer",
        code="image_too_large",
        param="messages",
    )
