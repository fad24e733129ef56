"""What SHIELD does inside of its final pass: features repaired before the projector, and a branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import BatchFeature, PreTrainedModel

from vlmfix.engine.capabilities import EditsVisionEncoder
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.decoder_inputs import embedded_tokens, selected
from vlmfix.engine.state import Branch
from vlmfix.engine.vision_cache import PIXELS, encode_images
from vlmfix.engine.vision_encoder import VisionEncoder
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import Method
from vlmfix.methods.logits.base import Contrastive, contrast
from vlmfix.methods.vision.shield.repairs import repaired

# Features of one picture, encoded twice, differ by less than this share of the largest.
_SAME = 1e-2


def encoded(model: PreTrainedModel, encoder: VisionEncoder, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What enters the projector and what leaves it.

    Args:
        pixels: of pictures, `(pictures, channels, height, width)`.

    Returns:
        `(pictures, patches, features)`, and the image tokens of each picture, `(tokens, hidden)`.

    Raises:
        UnsupportedError: the projector reads something else.
    """
    seen: list[Any] = []
    hook = encoder.projector.register_forward_pre_hook(lambda module, given: seen.extend(given[:1]))
    try:
        with torch.no_grad():
            parts = encode_images(model, [{PIXELS: row[None]} for row in pixels])
    finally:
        hook.remove()
    found = seen[0] if len(seen) == 1 else None
    if not isinstance(found, Tensor) or found.ndim != 3 or len(found) != len(pixels):
        raise UnsupportedError(
            f"the projector of {model.config.model_type} does not read one set of patches a picture, which "
            "SHIELD changes; use a method that acts elsewhere"
        )
    return found, [part.features for part in parts]


@dataclass(frozen=True, kw_only=True)
class ShieldRepair(Method, EditsVisionEncoder):
    """Repairs the features of known pictures before the projector, and those of no other one, such as the
    degraded pictures of a contrastive method.

    Args:
        features: of the pictures as they are, `(pictures, patches, features)`.
        bias: see `repaired`.
        weights: gains, `(pictures, patches)`.
        bias_weight: see `repaired`.
    """

    edits: ClassVar = False  # SHIELD counts

    features: Tensor = field(repr=False, compare=False)
    bias: Tensor = field(repr=False, compare=False)
    weights: Tensor = field(repr=False, compare=False)
    bias_weight: float

    def hook_encoder(self, encoder: VisionEncoder) -> Sequence[RemovableHandle]:
        return [encoder.projector.register_forward_pre_hook(self._repair)]

    def _repair(self, module: nn.Module, args: Any) -> Any:
        given, features = args[0], self.features
        if given.shape[1:] != features.shape[1:]:
            return None
        distance = (given[:, None].float() - features.float()).abs().amax(dim=(2, 3))
        known = distance <= _SAME * features.abs().amax().float()
        weights = self.weights[known.int().argmax(dim=1)]
        changed = repaired(given.float(), self.bias, weights, self.bias_weight).to(given)
        return (torch.where(known.any(dim=1)[:, None, None], changed, given), *args[1:])


@dataclass(frozen=True, kw_only=True)
class ShieldContrast(Contrastive):
    """Away from the plain prompt about attacked pictures.

    Args:
        alpha: strength.
        features: image tokens of all attacked pictures, `(tokens, hidden)`; None: without a branch, only the
            cut.
        inserted: tokens of the prompt that the plain one lacks, `(prompt,)` bool.
    """

    edits: ClassVar = False  # SHIELD counts

    alpha: float
    features: Tensor | None = field(repr=False, compare=False)
    inserted: Tensor = field(repr=False, compare=False)

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if self.features is None:
            return ()
        layout = context.layout
        shown = inputs_embeds.clone()
        tokens = self.features.to(shown).repeat(layout.batch_size, 1)
        shown[layout.image_tokens.to(shown.device)] = tokens
        plain, index = layout.select(layout.real_tokens & ~self.inserted.to(layout.real_tokens.device))
        index = index.to(shown.device)
        embeddings = shown.gather(1, index[..., None].expand(-1, -1, shown.shape[-1]))
        given = selected(embedded_tokens(decoder_inputs, shown), index, torch.ones_like(index).bool())
        return [Branch(embeddings, plain.real_tokens, None, given, fused=self.fused, seen=plain.seen)]

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return contrast(logits, branches[0], self.alpha) if branches else logits


def with_inserts(
    inputs: BatchFeature, image_token: int, counts: Sequence[int], inserts: Sequence[Sequence[int]]
) -> tuple[BatchFeature, Tensor]:
    """A prompt with tokens after each of its images.

    Args:
        inputs: of a single prompt.
        image_token: id of the image placeholder.
        counts: number of image tokens of each image.
        inserts: ids after each image.

    Returns:
        The longer inputs, and which of their tokens are new, `(prompt,)` bool.

    Raises:
        UnsupportedError: the prompt has another number of image tokens.
    """
    ids = inputs["input_ids"]
    image = (ids[0] == image_token).nonzero().flatten().tolist()
    if len(image) != sum(counts):
        raise UnsupportedError(
            f"the pictures make {sum(counts)} tokens, but the prompt holds {len(image)} placeholders for "
            "them; use a method that acts elsewhere"
        )
    columns: list[int] = []
    new: list[int] = []
    start = seen = 0
    for count, words in zip(counts, inserts, strict=True):
        seen += count
        stop = image[seen - 1] + 1
        columns += [*range(start, stop), *[-1] * len(words)]
        new += words
        start = stop
    index = torch.tensor([*columns, *range(start, ids.shape[1])])
    inserted = index < 0
    changed = {
        name: value.index_select(1, index.clamp_min(0).to(value.device))
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.shape == ids.shape
    }
    for name, value in changed.items():  # what is not text is marked, and what is read is 1
        value[:, inserted] = int(name == "attention_mask")
    changed["input_ids"][:, inserted] = torch.tensor(new, dtype=ids.dtype, device=ids.device)
    return BatchFeature({**inputs, **changed}), inserted
