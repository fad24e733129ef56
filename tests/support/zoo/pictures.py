"""What the processors that need torchvision, or another package, make of pictures: tensors and placeholders.

Each function takes the pictures of one prompt, of sizes that are multiples of 28, and returns the inputs of
the model and, for each picture, the text that stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.support.zoo.shrink import IMAGE_SIZE, PATCH

Drawn: TypeAlias = tuple[dict[str, Tensor], list[str]]
Draw: TypeAlias = Callable[[list[Image.Image]], Drawn]

MERGE = 2


def _pixels(image: Image.Image, size: int | None = None) -> Tensor:
    """`[3, height, width]` around 0; a square of a size if one is given."""
    resized = image if size is None else image.resize((size, size))
    return torch.from_numpy(np.asarray(resized, dtype=np.float32)).permute(2, 0, 1) / 64 - 2


def _cut(pixels: Tensor, side: int) -> Tensor:
    """Squares in raster order, `[rows * columns, 3, side, side]`."""
    height, width = pixels.shape[1] // side, pixels.shape[2] // side
    squares = pixels.reshape(3, height, side, width, side).permute(1, 3, 0, 2, 4)
    return squares.reshape(height * width, 3, side, side)


def _grid(image: Image.Image, side: int = PATCH) -> tuple[int, int]:
    return image.height // side, image.width // side


def _tiles(image: Image.Image) -> tuple[int, int]:
    """Rows and columns of tiles: two for the pictures that are twice as high as wide, else one."""
    return (image.height // IMAGE_SIZE, 1) if image.height > image.width else (1, 1)


def rows(merge: int) -> Draw:
    """Mistral-3 and Pixtral: a break behind each row of tokens, an end behind the last."""

    def draw(images: list[Image.Image]) -> Drawn:
        height, width = max(image.height for image in images), max(image.width for image in images)
        pixels = torch.zeros(len(images), 3, height, width)
        blocks = []
        for number, image in enumerate(images):
            pixels[number, :, : image.height, : image.width] = _pixels(image)
            down, across = _grid(image, PATCH * merge)
            blocks.append("[IMG_BREAK]".join(["[IMG]" * across] * down) + "[IMG_END]")
        sizes = torch.tensor([[image.height, image.width] for image in images])
        return {"pixel_values": pixels, "image_sizes": sizes}, blocks

    return draw


def patches(
    start: str, token: str, end: str, *, times: int = 1, flat: bool = True, grid: str = "thw"
) -> Draw:
    """Patches of all pictures in one row, and the grid of each.

    Args:
        times: how often a picture is repeated in its patches, where models read two frames at a time.
        flat: whether a patch is a vector.
        grid: "thw", or "hw" without the number of frames.
    """

    def draw(images: list[Image.Image]) -> Drawn:
        squares = torch.cat([_cut(_pixels(image), PATCH) for image in images])
        if flat:
            squares = squares.repeat(1, times, 1, 1).flatten(1)
        grids = torch.tensor([(1, *_grid(image)) for image in images])
        blocks = [start + token * (int(each.prod()) // MERGE**2) + end for each in grids]
        return {"pixel_values": squares, f"image_grid_{grid}": grids[:, -len(grid) :]}, blocks

    return draw


def tiles(form: Callable[[int, int], str]) -> Draw:
    """Square tiles of all pictures in one row, with the whole picture behind more than one.

    Args:
        form: text for a number of rows and columns of tiles.
    """

    def draw(images: list[Image.Image]) -> Drawn:
        squares, blocks = [], []
        for image in images:
            down, across = _tiles(image)
            if down * across > 1:
                large = image.resize((across * IMAGE_SIZE, down * IMAGE_SIZE))
                squares.append(_cut(_pixels(large), IMAGE_SIZE))
            squares.append(_pixels(image, IMAGE_SIZE)[None])
            blocks.append(form(down, across))
        return {"pixel_values": torch.cat(squares)}, blocks

    return draw


def cohere(down: int, across: int) -> str:
    count = down * across + (down * across > 1)
    return "<|START_OF_IMG|>" + ("<|IMG_PATCH|>" * 4 + "<|IMG_LINE_BREAK|>") * count + "<|END_OF_IMG|>"


def lfm2(images: list[Image.Image]) -> Drawn:
    """Vectors of patches, padded to those of the largest tile; thumbnails keep their own shape."""
    vectors, shapes, blocks = [], [], []
    for image in images:
        down, across = _tiles(image)
        parts = []
        if down * across > 1:
            parts = list(_cut(_pixels(image.resize((across * IMAGE_SIZE, down * IMAGE_SIZE))), IMAGE_SIZE))
            image = image.resize((image.width // 2, image.height // 2))
        block = "<|image_start|>"
        for number in range(len(parts)):
            block += f"<|img_row_{number // across + 1}_col_{number % across + 1}|>" + "<image>" * 4
        parts.append(_pixels(image))
        tokens = parts[-1].shape[1] * parts[-1].shape[2] // (PATCH * MERGE) ** 2
        blocks.append(block + "<|img_thumbnail|>" * (len(parts) > 1) + "<image>" * tokens + "<|image_end|>")
        vectors += [_cut(part, PATCH).flatten(1) for part in parts]
        shapes += [[part.shape[1] // PATCH, part.shape[2] // PATCH] for part in parts]
    longest = max(map(len, vectors))
    pixels = torch.zeros(len(vectors), longest, vectors[0].shape[1])
    mask = torch.zeros(len(vectors), longest, dtype=torch.long)
    for number, vector in enumerate(vectors):
        pixels[number, : len(vector)] = vector
        mask[number, : len(vector)] = 1
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor(shapes),
    }, blocks


def gemma4(images: list[Image.Image]) -> Drawn:
    """Vectors of large patches and their columns and rows, padded by -1."""
    side = PATCH * MERGE
    vectors = [_cut(_pixels(image), side).flatten(1) for image in images]
    longest = max(map(len, vectors))
    pixels = torch.zeros(len(images), longest, vectors[0].shape[1])
    places = torch.full((len(images), longest, 2), -1)
    for number, (image, vector) in enumerate(zip(images, vectors, strict=True)):
        down, across = _grid(image, side)
        pixels[number, : len(vector)] = vector
        places[number, : len(vector)] = torch.cartesian_prod(torch.arange(down), torch.arange(across)).flip(1)
    blocks = ["<|image>" + "<|image|>" * len(vector) + "<image|>" for vector in vectors]
    return {"pixel_values": pixels, "image_position_ids": places}, blocks


def inkling(images: list[Image.Image]) -> Drawn:
    """One token for each patch of 28 pixels, two equal frames deep."""
    squares = [_cut(_pixels(image), PATCH * MERGE).permute(0, 2, 3, 1) for image in images]
    pixels = torch.cat(squares)[:, None].repeat(1, 2, 1, 1, 1)
    return {"pixel_values": pixels}, ["<|content_image|>" + "<|patch|>" * len(each) for each in squares]


def inkling2(images: list[Image.Image]) -> Drawn:
    """One token for each square of 2 x 2 patches, by which the grid counts too."""
    side = PATCH * MERGE
    squares = torch.cat([_cut(_pixels(image), side).permute(0, 2, 3, 1) for image in images])
    grids = torch.tensor([(1, *_grid(image, side)) for image in images])
    blocks = ["<|patch|>" * int(grid.prod()) for grid in grids]
    return {"pixel_values": squares, "image_grid_thw": grids}, blocks


def molmo(images: list[Image.Image]) -> Drawn:
    """The whole picture as a square, then its tiles; each token pools 2 x 2 patches."""
    crops, pooling, grids, counts, blocks = [], [], [], [], []
    first = 0
    for image in images:
        down, across = _tiles(image)
        large = image.resize((across * IMAGE_SIZE, down * IMAGE_SIZE))
        squares = torch.cat([_pixels(image, IMAGE_SIZE)[None], _cut(_pixels(large), IMAGE_SIZE)])
        side = IMAGE_SIZE // PATCH
        numbers = torch.arange(side * side * len(squares)).reshape(-1, side, side) + first
        first += numbers.numel()
        crops += [_cut(square, PATCH).flatten(1) for square in squares]
        whole = (
            numbers[1:].reshape(down, across, side, side).transpose(1, 2).reshape(down * side, across * side)
        )
        for field in (numbers[0], whole):
            windows = field.unfold(0, MERGE, MERGE).unfold(1, MERGE, MERGE)
            pooling.append(windows.reshape(-1, MERGE * MERGE))
        half = side // MERGE
        grids.append([half, half, down * half, across * half])
        counts.append(len(squares))
        low = "<low_res_im_start>" + ("<im_patch>" * half + "<im_col>") * half + "<im_end>"
        high = "<im_start>" + ("<im_patch>" * across * half + "<im_col>") * down * half + "<im_end>"
        blocks.append(low + high)
    return {
        "pixel_values": torch.stack(crops),
        "image_token_pooling": torch.cat(pooling),
        "image_grids": torch.tensor(grids),
        "image_num_crops": torch.tensor(counts),
    }, blocks


def step3(images: list[Image.Image]) -> Drawn:
    """The whole picture, and its tiles in a tensor of their own; the tiles come first in the text."""
    squares, counts, blocks = [], [], []
    for image in images:
        down, across = _tiles(image)
        count = down * across if down * across > 1 else 0
        if count:
            squares.append(_cut(_pixels(image.resize((across * IMAGE_SIZE, down * IMAGE_SIZE))), IMAGE_SIZE))
        counts.append(count)
        part = "<patch_start><im_patch><patch_end><patch_newline>"
        blocks.append(part * count + "<im_start><im_patch><im_end>")
    inputs = {
        "pixel_values": torch.stack([_pixels(image, IMAGE_SIZE) for image in images]),
        "num_local_patches": torch.tensor(counts),
    }
    return inputs | ({"pixel_values_local": torch.cat(squares)} if squares else {}), blocks


def squares(size: int, block: str) -> Draw:
    """Every picture as one square, and the same text for each."""

    def draw(images: list[Image.Image]) -> Drawn:
        return {"pixel_values": torch.stack([_pixels(image, size) for image in images])}, [block] * len(
            images
        )

    return draw


def one_tile(images: list[Image.Image]) -> Drawn:
    """Perception-LM: tiles of each picture in a dimension of their own, here one."""
    inputs, blocks = squares(IMAGE_SIZE, "<|image|>" * 16)(images)
    return {"pixel_values": inputs["pixel_values"][:, None]}, blocks


def frames(images: list[Image.Image]) -> Drawn:
    """Two equal frames of each picture, four learned queries each; the queries read three words."""
    pixels = torch.stack([_pixels(image, IMAGE_SIZE) for image in images])[:, None].repeat(1, 2, 1, 1, 1)
    ids = torch.ones(len(images), 3, dtype=torch.long)
    inputs = {"pixel_values": pixels, "qformer_input_ids": ids, "qformer_attention_mask": ids}
    return inputs, ["<image>" * 8] * len(images)


def apertus(images: list[Image.Image]) -> Drawn:
    """Codes of a picture of 16 pixels each, in rows; the size stands in front."""
    height, width = (
        max(image.height for image in images) // 28 * 16,
        max(image.width for image in images) // 28 * 16,
    )
    pixels = torch.zeros(len(images), 3, height, width)
    sizes, blocks = [], []
    for number, image in enumerate(images):
        down, across = _grid(image, 28)
        resized = image.resize((across * 16, down * 16))
        pixels[number, :, : down * 16, : across * 16] = _pixels(resized)
        sizes.append([down * 16, across * 16])
        lines = "<eol>".join(["<image>" * across] * down)
        blocks.append(f"<boi>{lines}<eoi>")
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}, blocks


def fuyu(images: list[Image.Image]) -> Drawn:
    """Patches of one picture, padded to a common size, and a line break behind each row of them."""
    image = images[0].resize((IMAGE_SIZE, IMAGE_SIZE))
    down, across = _grid(image)
    block = ("|SPEAKER|" * across + "|NEWLINE|") * down
    return {"pixel_values": _cut(_pixels(image), PATCH).flatten(1)[None]}, [block]
