"""VisionZip: the patches that the vision encoder itself attends to, and merged ones for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlmfix.engine.capabilities import ReadsVisionAttention
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import PruneResult
from vlmfix.engine.vision_attention import EncodedBlock
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import TokenPruning
from vlmfix.methods.registry import register_method


@register_method("visionzip")
@dataclass(frozen=True, kw_only=True)
class VisionZip(TokenPruning, ReadsVisionAttention):
    """VisionZip (arXiv 2412.04467): what the vision encoder attends to stays, the rest is merged.

    Acts on each image, each tile of an image or each frame of a video (two, where Qwen-VL reads two as one),
    before the language model. Dominant patches are those to which the class token attends most in the layer
    whose features are used; some of the others become contextual tokens: each merges those that are like it,
    before the projector. They keep their places, and the class token takes that of the first patch that
    leaves; the released code puts it first and contextual tokens last, and numbers the positions anew
    (`position_scheme="renumber"` does that for the places they have here). Newline tokens between the rows of
    tiles leave. Of LLaVA-NeXT only patches that the prompt shows take part; the released code never cuts the
    padding off, so that it can be dominant there.

    Without a class token (Qwen-VL), dominant are the tokens whose patches receive most attention in the last
    layer but one, or the last that sees the whole image; merging then comes after the encoder's own merger.

    Args:
        dominant_tokens: of an image or tile, the class token included, 1 or more; None leaves the model as it
            is. Images with no more tokens than dominant and contextual ones keep them all.
        contextual_tokens: of an image or tile, 0 or more.
    """

    dominant_tokens: int | None = 54
    contextual_tokens: int = 10

    info = MethodInfo(
        stage="pruning",
        changes="image tokens that the vision encoder ignores are merged",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="released code",
        paper="2412.04467",
        families="with a CLIP encoder and a projector, or an encoder that merges patches (Qwen-VL, GLM-4V)",
    )
    identity_parameters: ClassVar = {"dominant_tokens": None}

    def __post_init__(self) -> None:
        super().__post_init__()
        dominant, contextual = self.dominant_tokens, self.contextual_tokens
        if dominant is not None and (type(dominant) is not int or dominant < 1):
            raise ValueError(
                f"dominant_tokens is {dominant!r}; it must be a number of tokens, 1 or more, or None for all"
            )
        if type(contextual) is not int or contextual < 0:
            raise ValueError(f"contextual_tokens is {contextual!r}; it must be a number of tokens, 0 or more")

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> PruneResult | None:
        if layer != 0:
            return None
        image_tokens = context.layout.image_tokens.to(hidden_states.device)
        mask, states = ~image_tokens, hidden_states.clone()
        for sample, images in enumerate(context.encoded_images):
            places = image_tokens[sample].nonzero().squeeze(1)
            for image in images:
                own, places = places[: image.count], places[image.count :]
                for block in image.blocks:
                    slots, values = self._zip(context, block, hidden_states[sample, own])
                    mask[sample, own[slots]] = True
                    states[sample, own[slots]] = values.to(states)
        return PruneResult(mask, states)

    def _zip(self, context: DecodeContext, block: EncodedBlock, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the tokens of a block that stay, `(kept,)`, and what they become, `(kept, hidden)`."""
        assert self.dominant_tokens is not None
        assert context.encoder is not None
        block = block.to(tokens.device)
        shown = (block.places >= 0).nonzero().squeeze(1)
        places = block.places[shown]
        if self.dominant_tokens + self.contextual_tokens >= len(shown):
            return places, tokens[places]
        patches = self.dominant_tokens - (block.class_feature is not None)
        dominant = dominant_patches(block.attention[:, shown], patches)
        features = tokens[places] if block.features is None else block.features[shown]
        targets, merged = merge_remaining(features, block.keys[shown], dominant, self.contextual_tokens)
        if block.features is not None:
            merged = context.encoder.project(merged) if len(targets) else tokens[:0]
        slots, values = [places[dominant], places[targets]], [tokens[places[dominant]], merged.to(tokens)]
        if block.class_feature is not None:
            leaves = torch.ones_like(places, dtype=torch.bool)
            leaves[torch.cat([dominant, targets])] = False
            slots.append(places[leaves.int().argmax()][None])
            values.append(context.encoder.project(block.class_feature[None]).to(tokens))
        return torch.cat(slots), torch.cat(values)


def dominant_patches(attention: Tensor, count: int) -> Tensor:
    """Patches that get most attention in the vision encoder (arXiv 2412.04467, section 3.2).

    Args:
        attention: that of the class token, or the mean that a patch receives in an encoder without one,
            `(heads, patches)`.
        count: how many to choose.

    Returns:
        Indices in spatial order, `(count,)` int64; of equal patches the first ones.
    """
    return attention.sum(dim=0).argsort(descending=True, stable=True)[:count].sort().values


def merge_remaining(features: Tensor, keys: Tensor, dominant: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge the patches that are not dominant into a few contextual ones (arXiv 2412.04467, section 3.2).

    Targets lie at a uniform stride among the remaining patches; each other one goes to the target whose key
    is most similar, and the target grows by the mean of what it gets.

    Args:
        features: `(patches, features)`.
        keys: key projections averaged over the heads, `(patches, head_dim)`.
        dominant: indices that take no part.
        count: number of targets; all remaining patches if there are fewer.

    Returns:
        Indices of the targets, ascending, `(targets,)` int64, and the merged features, `(targets, features)`,
        in the dtype of `features`.
    """
    is_rest = torch.ones(len(features), dtype=torch.bool, device=features.device)
    is_rest[dominant] = False
    rest = is_rest.nonzero().squeeze(1)
    count = min(count, len(rest))
    if count == 0:
        return rest[:0], features[:0]
    targets = rest[:: len(rest) // count][:count]
    is_rest[targets] = False
    others = is_rest.nonzero().squeeze(1)
    directions = nn.functional.normalize(keys.float(), dim=-1)
    nearest = (directions[others] @ directions[targets].T).argmax(dim=1)
    assigned = nn.functional.one_hot(nearest, count).float()
    means = (assigned.T @ features[others].float()) / assigned.sum(dim=0).clamp_min(1)[:, None]
    return targets, (features[targets].float() + means).to(features.dtype)
