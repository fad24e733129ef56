"""What a pass of the model reads: prompts, and where their images are, or the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.tokens import image_token, video_token
from vlmfix.errors import UnsupportedError


def is_prompt(queries: int, cache: Any, context: DecodeContext | None, *, in_generate: bool) -> bool:
    """Whether a pass reads prompts, and not the next token of those read before.

    Args:
        queries: number of tokens in the pass.
        cache: that the pass was given.
        context: of the prompts read last; None: there are none.
        in_generate: whether it is part of a `generate` call, which reads its prompts once.

    Raises:
        UnsupportedError: it is neither.
    """
    seen = 0 if cache is None else cache.get_seq_length()
    if seen == 0:
        if context is None or not in_generate:
            return True
        if (
            cache is None
            and context.engine.cache is None
            and queries == context.layout.length + context.step + 1
        ):
            return False  # with use_cache=False every step reads the whole sequence again
        raise UnsupportedError(
            f"a pass of {queries} tokens without the cache of the prompt ({context.layout.length} tokens) "
            "arrived inside a generate call, and methods cannot tell what it is: either something that "
            "was passed to generate calls the model by itself, which it should do outside the block, or "
            f"transformers {transformers.__version__} passes its cache in a way that vlmfix does not know"
        )
    if context is None:
        raise UnsupportedError(
            "generation starts from a filled cache, whose prompt the method has not seen; pass the "
            "whole prompt without a cache"
        )
    if cache is not context.engine.cache:
        raise UnsupportedError(
            "the step goes on from another cache than that of the prompt read last, which the method "
            "does not follow; read the prompt and go on from the cache of its output"
        )
    if queries != 1:
        raise UnsupportedError(
            f"a step of {queries} tokens on a filled cache (chunked prefill or assisted decoding) is not "
            "supported by methods; generate one token at a time"
        )
    present = context.layout_at(0).length + context.step
    if seen != present:
        raise UnsupportedError(
            f"the cache holds {seen} tokens, and {present} have been read under the method; do not crop "
            "or extend the cache between steps, but read the prompt anew"
        )
    return False


def sources(before: Tensor, after: Tensor, copies: int) -> Tensor:
    """From which sequence each one goes on, the first with the same tokens, `(batch,)` int64; -1: from none.

    Args:
        before: tokens of the sequences in the step before, `(batch, tokens)`.
        after: those from which they go on now, in the same form.
        copies: sequences of each prompt.
    """
    prompt = torch.arange(len(before), device=before.device) // copies
    same = (after[:, None] == before[None]).all(dim=-1) & (prompt[:, None] == prompt[None])
    return torch.where(same.any(dim=1), same.int().argmax(dim=1), -1)


def visual_tokens(
    model: PreTrainedModel,
    kwargs: Mapping[str, Any],
    prompt_ids: Tensor | None,
    shown: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """The placeholders of images and videos, and those of videos alone, `(batch, prompt)` bool each.

    Those of embeddings come from the ids beside them, or from placeholders not yet filled.

    Args:
        model: the whole model.
        kwargs: of the pass that reads the prompts, with `input_ids` or `inputs_embeds`.
        prompt_ids: that `generate` got beside embeddings.
        shown: what holds the pixels, which `generate` may have encoded before the pass; None: `kwargs`.

    Raises:
        UnsupportedError: there are images and videos with one placeholder; or the embeddings hold the image
            features already, and there are no ids.
    """
    input_ids, image, video = kwargs.get("input_ids"), image_token(model.config), video_token(model.config)
    shown = kwargs if shown is None else shown
    if video == image and shown.get("pixel_values") is not None:
        if shown.get("pixel_values_videos") is not None:
            raise UnsupportedError(
                f"{type(model).__name__} has one placeholder for images and videos, and a prompt with both "
                "does not tell which is which; show images or videos"
            )
        video = None
    if input_ids is None:
        embeddings, ids = kwargs["inputs_embeds"], prompt_ids
        batch, length = embeddings.shape[:2]
        if ids is not None and ids.shape[1] == length and batch % ids.shape[0] == 0:
            input_ids = ids.repeat_interleave(batch // ids.shape[0], dim=0)

    def is_token(token: int | None) -> Tensor:
        if input_ids is not None:
            return torch.zeros_like(input_ids).bool() if token is None else input_ids == token
        if token is None:
            none: Tensor = embeddings.new_zeros(batch, length, dtype=torch.bool)
            return none
        placeholder = model.get_input_embeddings()(torch.tensor([token], device=embeddings.device))
        same: Tensor = (embeddings == placeholder).all(dim=-1)
        return same

    videos = is_token(video)
    visual = is_token(image) | videos
    if input_ids is None and not bool(visual.any()):
        raise UnsupportedError(
            "the prompt is given as inputs_embeds with the image features in it, so that the image "
            "positions cannot be known; pass the input_ids of the same prompt to generate as well"
        )
    return visual, videos
