"""Pixels of model inputs turned back into pictures, and pictures into pixels again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.errors import UnsupportedError

_CHANNELS = 3
_LEVELS = 255


class PixelForm(NamedTuple):
    """What an image processor makes of the levels of a picture, from 0 to 255.

    Args:
        mean: subtracted from the scaled levels of each channel, `(3, 1, 1)`.
        std: by which they are divided then, `(3, 1, 1)`.
        scale: factor on the levels before that.
        patch_size: side of the patches that Qwen-VL reads, in pixels.
        merge_size: patches along the side of a block that is read in a row.
        copies: how often a patch holds its part of the picture.
    """

    mean: Tensor
    std: Tensor
    scale: float
    patch_size: int
    merge_size: int
    copies: int

    @classmethod
    def of(cls, image_processor: Any, config: PreTrainedConfig) -> Self:
        """The form of a processor.

        Args:
            image_processor: at the settings with which it made the pixels.
            config: of the whole model.

        Raises:
            UnsupportedError: this is no image processor with a mean and a deviation for each channel.
        """
        mean, std = (getattr(image_processor, name, None) for name in ("image_mean", "image_std"))
        if mean is None or std is None:
            raise UnsupportedError(
                f"{type(image_processor).__name__} has no image_mean and image_std, without which pixels are "
                "no picture; pass the processor of the checkpoint"
            )
        if not getattr(image_processor, "do_normalize", True):
            mean, std = 0.0, 1.0
        mean, std = (torch.as_tensor(each).float().expand(_CHANNELS)[:, None, None] for each in (mean, std))
        rescales = getattr(image_processor, "do_rescale", True)
        scale = getattr(image_processor, "rescale_factor", 1 / _LEVELS) if rescales else 1.0
        vision = getattr(config, "vision_config", None)
        sizes = [getattr(vision, name, 1) for name in ("spatial_merge_size", "temporal_patch_size")]
        side = getattr(vision, "patch_size", 1)  # which patches in a list alone need
        return cls(mean, std, scale, side if isinstance(side, int) else side[0], *sizes)

    def pictures(self, image: Mapping[str, Tensor]) -> list[Image.Image]:
        """The crops of one image in the resolution in which the model reads them.

        Args:
            image: see `vlmfix.engine.vision_cache.split_images`; levels between or beyond those of a picture
                are rounded.
        """
        pixels = image["pixel_values"].detach().float().cpu()
        if "image_grid_thw" in image:
            pixels = self._unfolded(pixels, *image["image_grid_thw"][0].tolist()[1:])
        levels = (pixels * self.std + self.mean) / self.scale
        levels = levels.round().clamp(0, _LEVELS).to(torch.uint8).reshape(-1, *levels.shape[-3:])
        return [Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy()) for crop in levels]

    def pixels(self, pictures: Sequence[Image.Image], image: Mapping[str, Tensor]) -> Tensor:
        """The pixels of other crops in the form of those of an image.

        Args:
            pictures: of the sizes that `pictures` gives.
            image: in whose place they are put.
        """
        levels = torch.stack([torch.from_numpy(numpy.array(crop)).permute(2, 0, 1) for crop in pictures])
        pixels = (levels.float() * self.scale - self.mean) / self.std
        if "image_grid_thw" in image:
            pixels = self._folded(pixels[0], *image["image_grid_thw"][0].tolist()[1:])
        return pixels.reshape(image["pixel_values"].shape).to(image["pixel_values"])

    def _unfolded(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """The picture `(3, height, width)` of patches in blocks; each holds its copies after one another."""
        merge, size = self.merge_size, self.patch_size
        blocks = patches.view(
            rows // merge, columns // merge, merge, merge, _CHANNELS, self.copies, size, size
        )
        return (
            blocks[:, :, :, :, :, 0]
            .permute(4, 0, 2, 5, 1, 3, 6)
            .reshape(_CHANNELS, rows * size, columns * size)
        )

    def _folded(self, picture: Tensor, rows: int, columns: int) -> Tensor:
        merge, size = self.merge_size, self.patch_size
        blocks = picture.reshape(
            _CHANNELS, rows // merge, merge, size, columns // merge, merge, size
        ).permute(1, 4, 2, 5, 0, 3, 6)
        copies = blocks[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, self.copies, -1, -1)
        return copies.reshape(rows * columns, -1)
