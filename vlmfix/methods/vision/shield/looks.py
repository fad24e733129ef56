"""What SHIELD remembers of a picture, and what it shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from vlmfix.methods.image.carve.crop import saliency_map
from vlmfix.methods.image.maps import locate
from vlmfix.methods.vision.shield.pixels import as_picture
from vlmfix.methods.vision.shield.results import ShieldedPicture
from vlmfix.methods.vision.shield.text_tower import Attack


class Look(NamedTuple):
    """What is remembered of one picture.

    Args:
        caption: "" without one.
        gains: of its patches, `(patches,)`; None: they stay as they are.
        insert: ids of the words after it.
        attack: on it; None: there is none.
        features: image tokens of the attacked picture, `(tokens, hidden)`.
    """

    caption: str = ""
    gains: Tensor | None = None
    insert: tuple[int, ...] = ()
    attack: Attack | None = None
    features: Tensor | None = None


def looked_at(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: BatchFeature,
    pictures: list[Image.Image],
    looks: Sequence[Look],
) -> tuple[ShieldedPicture, ...]:
    """What was done to each picture, to be looked at.

    Args:
        inputs: of the prompt that shows them.
    """
    own: Any = processor
    amplified = any(look.gains is not None for look in looks)
    located = locate(model, processor, inputs, pictures) if amplified else [None] * len(pictures)
    shown = []
    for picture, look, image in zip(pictures, looks, located, strict=True):
        gains = None
        if look.gains is not None and image is not None:
            gains = saliency_map(look.gains.cpu(), image, picture.size)
        shown.append(
            ShieldedPicture(
                original=picture,
                caption=look.caption,
                words=own.tokenizer.decode(look.insert, skip_special_tokens=True).strip(),
                gains=gains,
                attacked=None if look.attack is None else as_picture(look.attack.pixels, processor),
                logits=None if look.attack is None else (look.attack.before, look.attack.after),
            )
        )
    return tuple(shown)
