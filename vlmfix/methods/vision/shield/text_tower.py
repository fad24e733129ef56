"""CLIP with its text encoder, which checkpoints of these models do not contain, and attacks by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from vlmfix.errors import UnsupportedError
from vlmfix.models.faults import telling_faults
from vlmfix.models.loading import resolve


class Attack(NamedTuple):
    """An attacked picture.

    Args:
        pixels: of it, in the form of those that were attacked.
        before: logit of the picture and its caption.
        after: that of the attacked picture.
    """

    pixels: Tensor
    before: float
    after: float


class TextTower:
    """A CLIP in float32, of which text encoder and image-text logit are used.

    Args:
        name: a folder or a hub id.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is no CLIP, or cannot be read.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        # Weights that are made in inference mode give no gradients.
        with telling_faults(resolve(name), None, "the CLIP "), torch.inference_mode(False):
            config: Any = AutoConfig.from_pretrained(resolve(name))
            if config.model_type != "clip":
                raise ValueError(f"it is of type {config.model_type!r}, and no CLIP with a text encoder")
            clip: Any = CLIPModel.from_pretrained(resolve(name), dtype=torch.float32)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(resolve(name))
        self._clip = clip.to(device).eval().requires_grad_(False)
        self._device = device
        self._length: int = config.text_config.max_position_embeddings
        self._image_size: int = config.vision_config.image_size
        self._width: int = config.vision_config.hidden_size
        self.name = name

    def check(self, features: Tensor, pixels: Tensor) -> None:
        """Refuse the pictures of another encoder.

        Args:
            features: of its patches, `(..., features)`.
            pixels: that it reads, `(..., height, width)`.

        Raises:
            UnsupportedError: with the sizes.
        """
        own, given = (self._image_size, self._width), (pixels.shape[-1], features.shape[-1])
        if own != given or pixels.shape[-2] != pixels.shape[-1]:
            raise UnsupportedError(
                f"the vision encoder of the model reads pictures of {given[0]} pixels and has {given[1]} "
                f"features, and that of the CLIP {self.name!r} {own[0]} and {own[1]}; pass as clip the one "
                "that the model was made from"
            )

    def covered(self, text: str) -> str:
        """What of a text fits into the text encoder."""
        spans = self._tokens(text)["offset_mapping"][0]
        return text[: int(spans[:, 1].max())]

    def states(self, text: str) -> Tensor:
        """Last hidden states of a text without the first token, `(words, text features)`."""
        with torch.no_grad():
            states: Tensor = self._clip.text_model(**self._inputs(text)).last_hidden_state[0, 1:]
        return states

    def attack(
        self,
        pixels: Tensor,
        text: str,
        bounds: tuple[Tensor, Tensor],
        *,
        epsilon: float,
        steps: int,
        scale: float,
        rate: float,
    ) -> Attack:
        """Make a picture unlike a text.

        Args:
            pixels: of one picture, `(channels, height, width)`.
            text: what it shows.
            bounds: the least and the greatest pixels, `(channels, 1, 1)` each.
            epsilon, steps, scale, rate: see `attacked`.
        """
        text_inputs = self._inputs(text)

        def logit(image: Tensor) -> Tensor:
            score: Tensor = self._clip(pixel_values=image[None], **text_inputs).logits_per_image[0, 0]
            return score

        with torch.inference_mode(False):
            image, low, high = (each.detach().to(self._device).float().clone() for each in (pixels, *bounds))
            result = attacked(image, logit, (low, high), epsilon=epsilon, steps=steps, scale=scale, rate=rate)
            with torch.no_grad():
                before, after = float(logit(image)), float(logit(result))
        return Attack(result.to(pixels), before, after)

    def _tokens(self, text: str) -> Any:
        return self._tokenizer(
            text,
            truncation=True,
            max_length=self._length,
            return_offsets_mapping=True,
            return_tensors="pt",
        )

    def _inputs(self, text: str) -> dict[str, Tensor]:
        tokens = self._tokens(text)
        return {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask")}


def attacked(
    image: Tensor,
    logit: Callable[[Tensor], Tensor],
    bounds: tuple[Tensor, Tensor],
    *,
    epsilon: float,
    steps: int,
    scale: float,
    rate: float,
) -> Tensor:
    """The image plus `scale` times what lowers a logit, within bounds, by Adam (arXiv 2510.16596).

    Args:
        image: of any shape.
        logit: of an image, a single number; the search stops when it is below 0.
        bounds: the least and the greatest image, which broadcast to it.
        epsilon: the greatest absolute value of what is added, before `scale`.
        steps: of Adam, at most.
        scale: of what is added.
        rate: of Adam.
    """
    low, high = bounds

    def changed(delta: Tensor) -> Tensor:
        return (image + scale * delta).clamp(low, high)

    delta = torch.zeros_like(image).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            score = logit(changed(delta))
            if float(score.detach()) < 0:
                break
            optimizer.zero_grad()
            score.backward()
            optimizer.step()
            with torch.no_grad():
                delta.clamp_(-epsilon, epsilon)
    return changed(delta.detach())
