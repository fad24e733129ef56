"""Maps of a picture before and after a method changes what the vision encoder makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine import compatibility
from vlmfix.engine.vision_encoder import VisionEncoder
from vlmfix.inference.conversation import Conversation, open_conversations
from vlmfix.inference.rendering import model_inputs
from vlmfix.methods.base import Method
from vlmfix.methods.image.carve.crop import heat_map, saliency_map
from vlmfix.methods.image.maps import attached_to, locate, map_pass
from vlmfix.methods.multi_pass import refuse_videos
from vlmfix.models.image_grid.grids import ImageTokens

_READER = "A map of the vision encoder"


class Maps(NamedTuple):
    """Two maps over the pixels of a picture, `(height, width)` float each, NaN where no token sees it."""

    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class EncoderMaps:
    """What a method changes in the pictures of a prompt.

    Args:
        pictures: of the prompt.
        attention: of the last prompt token to each picture, mean over heads and layers.
        norms: of the features of the patches that the projector reads, of each picture; empty where the
            tokens of the prompt are no single patches.
    """

    pictures: Sequence[Image.Image]
    attention: Sequence[Maps]
    norms: Sequence[Maps]

    def save(self, directory: str | Path, stem: str) -> list[Path]:
        """Write `<stem>-attention.png` and `<stem>-norms.png`, before on the left and after on the right, in
        one scale of colours; where there are several pictures, the number of each comes last.

        Returns:
            The files.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for kind, several in (("attention", self.attention), ("norms", self.norms)):
            for number, (picture, maps) in enumerate(zip(self.pictures, several, strict=False), 1):
                place = f"-{number}" if len(self.pictures) > 1 else ""
                written.append(folder / f"{stem}-{kind}{place}.png")
                _side_by_side(picture, maps).save(written[-1])
        return written


def encoder_maps(
    model: PreTrainedModel, processor: ProcessorMixin, asked: Conversation, method: Method
) -> EncoderMaps:
    """Maps of the pictures of a prompt without and with a method that changes the vision encoder.

    Args:
        model: with a CLIP or SigLIP encoder and a projector.
        processor: of the model.
        asked: `Conversation.of(image, prompt)`.
        method: such as `Registers`.

    Raises:
        UnsupportedError: the model is another one, the prompt holds a video, or where the tokens of the
            pictures lie is not known exactly.
        ValueError: a value of the method does not fit the model.
    """
    model = compatibility.stock_model(model)
    attached_to(model, _READER)
    refuse_videos(asked, _READER)
    [asked] = open_conversations([asked])
    pictures = [each for each in asked.pictures if isinstance(each, Image.Image)]
    inputs = model_inputs([asked], processor)
    located = locate(model, processor, inputs, pictures) if pictures else []
    before, after = (
        _read(model, processor, asked, located, pictures, block)
        for block in (nullcontext(), method(model, processor))
    )
    return EncoderMaps(
        pictures=pictures,
        attention=[Maps(*both) for both in zip(before[0], after[0], strict=True)],
        norms=[Maps(*both) for both in zip(before[1], after[1], strict=True)],
    )


def _read(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: Conversation,
    located: Sequence[ImageTokens],
    pictures: Sequence[Image.Image],
    block: AbstractContextManager[None],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Attention to each picture, and the norms of its patches, in a block."""
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else next(iter(kwargs.values()))
        seen.append(features.float().norm(dim=-1).flatten().cpu())

    with block:
        hook = VisionEncoder(model).projector.register_forward_pre_hook(see, with_kwargs=True)
        try:
            layers = tuple(range(model.config.get_text_config().num_hidden_layers))
            inputs = model_inputs([asked], processor)
            attention = map_pass(model, processor, inputs, layers, 1, _READER).attention
        finally:
            hook.remove()
    counts = [image.count for image in located]

    def spread(values: Tensor) -> list[np.ndarray]:
        return [
            saliency_map(own, image, picture.size)
            for own, image, picture in zip(values.split(counts), located, pictures, strict=True)
        ]

    has_norms = sum(map(len, seen)) == sum(counts)
    return spread(attention[:, 0].mean(dim=0)), spread(seen[0]) if seen and has_norms else []


def _side_by_side(picture: Image.Image, maps: Maps) -> Image.Image:
    """Both maps over the picture, in one scale."""
    wide = Image.new("RGB", (2 * picture.width, picture.height))
    for column in (0, picture.width):
        wide.paste(picture.convert("RGB"), (column, 0))
    return heat_map(wide, np.concatenate(maps, axis=1))
