"""CausalMM: away from what the model would say if attention were something else (arXiv 2410.04780)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmfix.engine.capabilities import ReadsVisionAttention
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.engine.stats import Sums
from vlmfix.engine.vision_attention import EncodedBlock
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.attention_edits import edited_map, edited_weights
from vlmfix.methods.logits.base import Contrastive, contrast, finite
from vlmfix.methods.logits.branch_prompts import shown_images, unchanged
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, OneOf
from vlmfix.methods.validation import check_choice, check_range, check_whole

VISION_EDITS = ("shuffle", "random", "uniform", "reversed")
TEXT_EDITS = ("reversed", "reversed_normalised", "uniform", "random")


@register_method("causalmm")
@dataclass(frozen=True, kw_only=True)
class CausalMM(Contrastive, ReadsVisionAttention):
    """CausalMM (arXiv 2410.04780): away from readings with counterfactual attention, of the vision encoder or
    of the language model.

    In the first, the features of patches are multiplied by an edited attention map of the layer of the
    encoder that the model uses, class token included, resized to the grid of patches; the map then has
    nothing to do with what the patches attend to. Rows of a map sum to 1, so that "shuffle" and "uniform"
    make the features as many times smaller as there are tokens, on average (577 in LLaVA-1.5): that reading
    is nearly without an image. This is what the released code does; "random" leaves their size.

    In the second, the weights of the language model are edited in all layers, in rows of the prompt and new
    ones. That is published as a fragment without its layers, and reconstructed here. The strength is that of
    the scripts; the code falls back to 0.5.

    Args:
        gamma: strength, in [0, 100]; 0 leaves only the cut.
        vision_edit: "shuffle" (all entries of the map of an image, by chance), "random" (from 0 to 2),
            "uniform" (the mean of each head), "reversed" (the maximum of each head minus the map), or None.
        text_edit: "reversed" (the maximum of each row minus the weights), "reversed_normalised" (and the rest
            made to sum to 1), "uniform", "random" (from 0 to 1, made to sum to 1), or None.
        seed: of chance, 0 or more; neither the place in a batch nor the device matters.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    gamma: float = 1.0
    vision_edit: str | None = "shuffle"
    text_edit: str | None = None
    seed: int = 0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits under counterfactual attention",
        where="every step",
        forwards=2.0,
        provenance="released code",
        paper="2410.04780",
        families="vision_edit: with a CLIP encoder and a projector; text_edit: all",
    )
    identity_parameters: ClassVar = {"gamma": 0, "beta": 0}
    search_space: ClassVar = {"gamma": Between(0.2, 2), "vision_edit": OneOf(VISION_EDITS)}
    needs_class_token: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gamma", self.gamma, 0, 100)
        if self.vision_edit is not None:
            check_choice("vision_edit", self.vision_edit, VISION_EDITS)
        if self.text_edit is not None:
            check_choice("text_edit", self.text_edit, TEXT_EDITS)
        if self.vision_edit is None and self.text_edit is None:
            raise ValueError("vision_edit and text_edit are None; one of them must say what is compared with")
        check_whole("seed", self.seed, 0, 2**31)

    @property
    def reads_encoder(self) -> bool:
        return self.gamma > 0 and self.vision_edit is not None

    @property
    def reads_maps(self) -> bool:
        return self.vision_edit in ("shuffle", "reversed")

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if self.gamma == 0 or not context.layout.has_image:
            return ()
        branches = []
        plain = unchanged(context, inputs_embeds, decoder_inputs, fused=self.fused)
        if self.vision_edit is not None:
            branches.append(replace(plain, inputs_embeds=self._other_image(context, inputs_embeds)))
        if self.text_edit is not None:
            padding = context.layout.real_tokens.int().argmax(dim=1)
            edit = functools.partial(edited_weights, kind=self.text_edit, seed=self.seed, padding=padding)
            branches.append(replace(plain, edit_weights=edit))
        return branches

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if not branches:
            return logits
        if (self, "factors") in context.state:
            context.measure(self, size=context.state[self, "factors"])
        return away_from_all(logits, branches, self.gamma)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "mean factor on the features of patches in the vision branch"}

    def _other_image(self, context: DecodeContext, inputs_embeds: Tensor) -> Tensor:
        """The prompts with tokens of multiplied patches, `(batch, prompt, hidden)`."""
        assert context.encoder is not None
        assert self.vision_edit is not None
        pixels = shown_images(context, "CausalMM", in_rows=True)
        encoded = context.encoded_images[:: context.copies]
        if len(pixels) != sum(map(len, encoded)):
            raise UnsupportedError(
                "CausalMM draws by the pixels of each image, and those of this model do not come one an "
                "image; use vision_edit=None with a text_edit"
            )
        embeddings = inputs_embeds[:: context.copies].clone()
        image_tokens = context.layout.image_tokens[:: context.copies].to(embeddings.device)
        means = embeddings.new_ones(len(embeddings), 1, dtype=torch.float32)
        remaining = iter(pixels)
        for sample, images in enumerate(encoded):
            places = image_tokens[sample].nonzero().squeeze(1)
            sizes = []
            for image in images:
                own, places = places[: image.count], places[image.count :]
                shown = next(remaining)["pixel_values"]
                for block, tile in zip(image.blocks, shown.view(-1, *shown.shape[-3:]), strict=False):
                    factors = block_factors(block, tile, self.vision_edit, self.seed)
                    assert block.features is not None
                    features = (block.features * factors[:, None]).to(block.features.dtype)
                    tokens = context.encoder.project(features).to(embeddings)
                    visible = block.places >= 0
                    embeddings[sample, own[block.places[visible].to(own.device)]] = tokens[visible]
                    sizes.append(factors.mean())
            if sizes:
                means[sample] = torch.stack(sizes).mean()
        context.state[self, "factors"] = means.repeat_interleave(context.copies, dim=0)
        return embeddings.repeat_interleave(context.copies, dim=0)


def block_factors(block: EncodedBlock, pixels: Tensor, kind: str, seed: int) -> Tensor:
    """What the features of the patches of an image or tile are multiplied by, `(patches,)` float32.

    Args:
        block: with `maps` where the kind needs them.
        pixels: of the image or tile, which choose what chance does.
        kind: see `CausalMM`.
        seed: of chance.
    """
    heads, patches = block.attention.shape
    weights = block.maps
    if weights is None:  # the mean of rows that sum to 1, and chance, do not depend on them
        weights = block.attention.new_full((heads, patches + 1, patches + 1), 1 / (patches + 1))
    side = round(patches**0.5)
    return patch_factors(edited_map(weights, kind, pixels, seed), (side, patches // side))


def patch_factors(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map, as a picture, in the size of the grid of patches (arXiv 2410.04780, released code).

    Args:
        weights: `(heads, tokens, tokens)` float32.
        grid: rows and columns of patches.

    Returns:
        Mean of the heads, `(patches,)`.
    """
    resized = nn.functional.interpolate(weights.mean(dim=0)[None, None], size=grid, mode="bilinear")
    return resized.flatten()


def away_from_all(logits: Tensor, branches: Sequence[Tensor], gamma: float) -> Tensor:
    """Logits moved away from those of each branch (arXiv 2410.04780).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branches: of each branch, in the same form.
        gamma: strength.
    """
    mean = torch.stack([finite(each) for each in branches]).mean(dim=0)
    return contrast(logits, mean, gamma * len(branches))
