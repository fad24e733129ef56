"""The stock decoder layers run by hand, so that attention and the residual stream can be trained too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from training.families import Family
from training.sequences import IGNORED, Batch
from training.sinks import FIRST_LAYER, Places, attention_loss, stream_loss
from training.world import sink_tokens

ATTENTION_LOSS_WEIGHT = 3.0
STREAM_LOSS_WEIGHT = 0.02
# Some heads of these layers are shown where to look; from the answers alone they learn it very late.
FOCUS_LAYERS, FOCUS_HEADS, FOCUS_LOSS_WEIGHT = (2, 4), 2, 0.3


def _explicit_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = (query @ key.mT * scaling + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("explicit", _explicit_attention)


@torch.compile
def _layer(
    layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, visual_sinks: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mixed, weights = layer.self_attn(
        hidden_states=layer.input_layernorm(hidden), position_embeddings=(cos, sin), attention_mask=mask
    )
    hidden = hidden + mixed
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    focused = (weights[:, :FOCUS_HEADS].mean(1) * keys).sum(-1)
    weights = weights.mean(1)
    return hidden, weights[..., 0], (weights * visual_sinks[:, None]).sum(-1), focused


def decode(family: Family, embeds: Tensor, batch: Batch, places: Places) -> tuple[Tensor, Tensor]:
    """Run the decoder.

    Returns:
        The normed last hidden states `(batch, sequence, hidden)` and the losses of sinks and focus.
    """
    decoder = family.language_model
    decoder.config._attn_implementation = "explicit"
    cos, sin = family.rotary(embeds, batch.positions)
    mask = batch.attention_mask()
    visual_sinks, keys = places.visual_sinks.float(), places.focus_keys.float()
    hidden, extra = embeds, embeds.new_zeros(())
    for number, layer in enumerate(decoder.layers):
        extra = extra + STREAM_LOSS_WEIGHT * stream_loss(hidden, places)
        hidden, on_first, on_visual_sinks, focused = _layer(layer, hidden, cos, sin, mask, visual_sinks, keys)
        if number >= FIRST_LAYER:
            extra = extra + ATTENTION_LOSS_WEIGHT * attention_loss(on_first, on_visual_sinks, places)
        if number in FOCUS_LAYERS:
            missed = -(focused[batch.focus > 0] + 1e-3).log().mean()
            extra = extra + FOCUS_LOSS_WEIGHT * missed
    decoder.config._attn_implementation = "sdpa"
    return decoder.norm(hidden), extra


def embed(family: Family, batch: Batch, image_embeds: Tensor) -> Tensor:
    """Input embeddings with image embeddings `(batch, image tokens, hidden)` in their places."""
    words = family.language_model.embed_tokens(batch.ids)
    index = batch.slots.clamp(min=0)[..., None].expand(-1, -1, words.shape[-1])
    return torch.where((batch.slots >= 0)[..., None], image_embeds.gather(1, index), words)


def places_of(batch: Batch, labels: Tensor) -> Places:
    """Where sinks and the objects that rows speak of are, given labels `(batch, rows, columns, 3)`.

    A row that speaks of a category which cannot be seen is to look at the first token.
    """
    slots, shown = batch.slots.clamp(min=0), batch.slots >= 0
    visual_sinks = sink_tokens(labels).flatten(1).gather(1, slots) & shown
    category = labels[..., 0].long().flatten(1).gather(1, slots) * shown
    keys = (batch.focus[:, :, None] == category[:, None, :]) & (category[:, None, :] > 0)
    keys[..., 0] = ~keys.any(-1)
    return Places(visual_sinks, batch.text_rows(), batch.segment >= 0, keys)


def language_loss(
    family: Family, batch: Batch, image_embeds: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the answers plus those of sinks and focus, and numbers for the log."""
    hidden, extra = decode(family, embed(family, batch, image_embeds), batch, places_of(batch, labels))
    loss, numbers = answer_loss(family, batch, hidden)
    return loss + extra, numbers | {"extra": extra.item()}


def answer_loss(family: Family, batch: Batch, hidden: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Loss of the answers from normed last hidden states `(batch, sequence, hidden)`, and numbers for the
    log."""
    answered = batch.targets != IGNORED
    logits = family.model.lm_head(hidden[answered])
    targets, weights = batch.targets[answered], batch.weights[answered]
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    right = logits.argmax(-1) == targets
    yes_no = torch.tensor([_yes_no(family, token) for token in ("Yes", "No")])
    asked = (targets[:, None] == yes_no).any(-1)
    numbers = {
        "answers": loss.item(),
        "yes/no": right[asked].float().mean().item(),
        "short": right[(weights > 1) & ~asked & (targets != family.tokenizer.eos_token_id)]
        .float()
        .mean()
        .item(),
    }
    return loss, numbers


def _yes_no(family: Family, word: str) -> int:
    token: int = family.tokenizer(family.turn[2] + word, add_special_tokens=False).input_ids[0]
    return token
