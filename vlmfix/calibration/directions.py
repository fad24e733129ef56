"""Finding directions of truthful and hallucinating captions, for VTI and Nullu."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import PROMPT, Calibration, Progress, prompt_inputs, with_answer
from vlmfix.engine.vision_encoder import VisionEncoder
from vlmfix.errors import UnsupportedError
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.steering.nullu import GREATEST_RANK, difference_subspace
from vlmfix.methods.steering.vti import direction

_MASKED_COPIES = 50
_MASK_RATIO = 0.99
_LEAST = 2
_SOURCE = "pairs of captions that list objects, half of them not there in the second one"


@dataclass(frozen=True)
class CaptionPair:
    """A picture with a caption that is true and one that is not, alike but for the objects.

    Args:
        image: the picture, or its path.
        truthful: names objects that are there.
        hallucinated: names objects of which some are not.
    """

    image: ImageLike
    truthful: str
    hallucinated: str

    @classmethod
    def of_objects(cls, image: ImageLike, present: Sequence[str], absent: Sequence[str]) -> CaptionPair:
        """Captions that list objects; in the hallucinated one, every second one is not there.

        Args:
            image: the picture.
            present: objects in it, one at least.
            absent: objects that are not, the likeliest first, half as many at least.
        """
        mixed = [absent[index // 2] if index % 2 == 0 else each for index, each in enumerate(present)]
        return cls(image, _listing(present), _listing(mixed))


def calibrate_vti(
    model: PreTrainedModel, processor: ProcessorMixin, pairs: Sequence[CaptionPair], progress: Progress
) -> Calibration:
    """Find the directions of VTI (arXiv 2410.15778).

    Of the text decoder: hidden states at the last token of true and hallucinated captions, all layers
    together. Of a CLIP or SigLIP encoder whose pictures all have as many tokens (LLaVA): hidden states of the
    picture and their mean over 50 copies in which 99 % of the patches are set to the channel means. The pairs
    of captions are this library's own.

    Args:
        model: a stock model.
        processor: its processor.
        pairs: 50 or so.
        progress: called with the number of pictures just read.

    Raises:
        ValueError: fewer than two pairs, or no pairs.
    """
    _check(pairs, "vti")
    encoder = _encoder_of(model)
    of_text, of_image = [], []
    for number, pair in enumerate(pairs):
        inputs = prompt_inputs(model, processor, pair.image, PROMPT)
        true, false = (
            torch.stack([layer[0, -1].float().cpu() for layer in _states(model, processor, inputs, caption)])
            for caption in (pair.truthful, pair.hallucinated)
        )
        of_text.append(true - false)
        if encoder is not None:
            of_image.append(_image_difference(model, inputs["pixel_values"][:1], seed=number))
        if progress is not None:
            progress(1)
    differences = torch.stack(of_text)  # (pairs, layers + 1, hidden)
    tensors = {"text": direction(differences.flatten(1)).view(differences.shape[1:])[1:]}
    if of_image:
        layers = torch.stack(of_image)  # (pairs, layers, tokens, width)
        count, depth, tokens, width = layers.shape
        found = direction(layers.permute(2, 0, 1, 3).reshape(tokens, count, depth * width))
        tensors["image"] = found.view(tokens, depth, width).transpose(0, 1)
    return Calibration(
        {},
        f"{len(pairs)} {_SOURCE}" + (f"; {_MASKED_COPIES} masked copies of each picture" if of_image else ""),
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        directions={"vti_directions": tensors},
    )


def calibrate_nullu(
    model: PreTrainedModel, processor: ProcessorMixin, pairs: Sequence[CaptionPair], progress: Progress
) -> Calibration:
    """Find the subspaces of Nullu (arXiv 2412.13817): per layer, the main directions of half the difference
    of the mean hidden states, over all positions, of true and hallucinated captions. The pairs of captions
    are this library's own.

    Args:
        model: a stock model.
        processor: its processor.
        pairs: as many as there are dimensions to remove, at least.
        progress: called with the number of pictures just read.

    Raises:
        ValueError: fewer than two pairs, or no pairs.
    """
    _check(pairs, "nullu")
    rows = []
    for pair in pairs:
        inputs = prompt_inputs(model, processor, pair.image, PROMPT)
        true, false = (
            torch.stack(
                [layer[0].float().mean(dim=0).cpu() for layer in _states(model, processor, inputs, caption)]
            )
            for caption in (pair.truthful, pair.hallucinated)
        )
        rows.append((true - false)[1:] / 2)
        if progress is not None:
            progress(1)
    rank = min(GREATEST_RANK, len(rows))
    subspaces = torch.stack([difference_subspace(layer, rank) for layer in torch.stack(rows, dim=1)])
    return Calibration(
        {},
        f"{len(pairs)} {_SOURCE}",
        {"subspaces": tuple(subspaces.shape)},
        directions={"nullu_directions": {"subspaces": subspaces}},
    )


def _check(pairs: Sequence[Any], method: str) -> None:
    if len(pairs) < _LEAST or not all(isinstance(each, CaptionPair) for each in pairs):
        raise ValueError(
            f"{method} is calibrated on {_LEAST} or more CaptionPair objects (on the command line a COCO "
            "folder with instances, as 'vlmfix scenes' writes)"
        )


def _listing(objects: Sequence[str]) -> str:
    *named, last = [f"{'an' if each[0] in 'aeiou' else 'a'} {each}" for each in objects]
    return f"The image shows {', '.join(named)} and {last}." if named else f"The image shows {last}."


def _states(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: Mapping[str, Tensor], caption: str
) -> tuple[Tensor, ...]:
    """Hidden states of a prompt and a caption after it, `(1, tokens, hidden)`, the embeddings first; the last
    ones are those after the final norm, as in released code."""
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        output = model(**with_answer(inputs, ids), output_hidden_states=True, use_cache=False)
    states: tuple[Tensor, ...] = output.hidden_states
    return states


def _encoder_of(model: PreTrainedModel) -> VisionEncoder | None:
    """The vision encoder, where it can be turned; None: its pictures have different numbers of tokens."""
    if model.config.model_type != "llava":
        return None
    try:
        return VisionEncoder(model)
    except UnsupportedError:
        return None


def _image_difference(model: PreTrainedModel, pixels: Tensor, *, seed: int) -> Tensor:
    """Mean of the hidden states of masked copies less those of the picture, `(layers, tokens, width)`.

    Args:
        pixels: `(1, channels, height, width)`.
        seed: of the masks.
    """
    masked = masked_copies(pixels, model.config.vision_config.patch_size, seed=seed)
    [original] = _encoded(model, [pixels])
    total = sum(part.sum(dim=1, keepdim=True) for part in _encoded(model, masked.split(10)))
    return (total / _MASKED_COPIES - original)[:, 0].cpu()


def masked_copies(pixels: Tensor, patch: int, *, seed: int) -> Tensor:
    """50 copies of a picture in which random patches, 99 % of them, are set to the means of the channels.

    Args:
        pixels: `(1, channels, height, width)`.
        patch: pixels of its side.
        seed: of the masks.

    Returns:
        `(50, channels, height, width)`; what is left at the edges beside whole patches is masked, too.
    """
    rows, columns = (length // patch for length in pixels.shape[-2:])
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(_MASKED_COPIES, rows * columns, generator=generator).argsort(dim=1)
    shown = torch.zeros(_MASKED_COPIES, rows * columns)
    shown.scatter_(1, order[:, int(_MASK_RATIO * rows * columns) :], 1.0)
    grown = shown.view(-1, 1, rows, columns).repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    height, width = pixels.shape[-2:]
    grown = torch.nn.functional.pad(grown, (0, width - columns * patch, 0, height - rows * patch)).to(pixels)
    return grown * pixels + (1 - grown) * pixels.mean(dim=(2, 3), keepdim=True)


def _encoded(model: PreTrainedModel, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Hidden states after each layer, `(layers, pictures, tokens, width)` float32, of parts of pictures."""
    core: Any = model.base_model
    for pixels in parts:
        with torch.no_grad():
            states = core.vision_tower(pixels, output_hidden_states=True).hidden_states
        yield torch.stack([each.float() for each in states[1:]])
