"""CODE: away from what the model would say of its own description in the place of the image
(arXiv 2406.01920)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmfix.engine.capabilities import WritesAhead
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.engine.stats import Sums
from vlmfix.inference.chat import find_question
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import ScaledContrast, contrast, finite, rule_out
from vlmfix.methods.logits.composed_prompts import Replacement, Token, composed, rewritten
from vlmfix.methods.logits.vdd import image_spans
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range, check_whole

NO_QUESTION = "no question in the prompt"
NO_DESCRIPTION = "the model wrote no description of the image"


@register_method("code")
@dataclass(frozen=True, kw_only=True)
class CODE(ScaledContrast, WritesAhead):
    """Countering Description Contrastive Decoding (arXiv 2406.01920): away from the same prompt with the
    model's own detailed description of the image in the place of the image.

    The description is written first, greedily and without any edit, as the answer to the same prompt with
    `caption_prompt` for the user's last words. Where a prompt has several images, one description of all of
    them stands in the place of the first, and nothing in that of the others; the released code knows one
    image. The more the two distributions differ, the weaker is the contrast and the stronger the cut, which
    rules out tokens less likely than that divergence times the likeliest one.

    Args:
        alpha: strength, in [0, 100]; 1 as published, 0 leaves the model as it is (but for `beta`).
        exponent: of the differences of probabilities in the divergence, in [0.01, 10].
        caption_tokens: of a description at most, 1 or more.
        caption_prompt: what is asked for it.
        beta: a further cut, see `LogitsMixer`; none in the paper.
        fused: see `Contrastive`.
    """

    exponent: float = 0.2
    caption_tokens: int = 512
    caption_prompt: str = (
        "Provide a detailed description of the image, covering all visible elements and their interactions, "
        "so as to thoroughly answer any potential questions about the image."
    )
    beta: float = 0.0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits of a description of the image",
        where="every step, after the model has described the image",
        forwards=2.0,
        provenance="released code",
        paper="2406.01920",
        decoding="greedy, sampling, beams, batches, with the processor",
    )
    search_space: ClassVar = {"alpha": Between(0.2, 2), "exponent": Between(0.05, 1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("exponent", self.exponent, 0.01, 10)
        check_whole("caption_tokens", self.caption_tokens, 1)
        if not isinstance(self.caption_prompt, str) or not self.caption_prompt.strip():
            raise ValueError(f"caption_prompt is {self.caption_prompt!r}; it must be a text")

    @property
    def needs_processor(self) -> bool:
        return self.contrasts

    def write_ahead(
        self,
        context: DecodeContext,
        inputs_embeds: Tensor,
        decoder_inputs: Mapping[str, Any],
        write: Callable[[Branch, Tensor, int], list[list[int]]],
    ) -> None:
        if not self.contrasts or not context.layout.has_image:
            return
        prompts, has_question = self._caption_prompts(context)
        image = context.layout.image_tokens
        asked = torch.tensor(has_question, device=image.device).repeat_interleave(context.copies)
        context.decline(self, NO_QUESTION, image.any(dim=1) & ~asked)
        branch = composed(context, inputs_embeds, decoder_inputs, prompts, fused=False)
        captions = write(branch, self.takes(context), self.caption_tokens)
        context.state[self, "captions"] = tuple(map(tuple, captions[:: context.copies]))
        lengths = image.new_tensor([len(each) for each in captions], dtype=torch.float32)
        context.decline(self, NO_DESCRIPTION, self.takes(context) & (lengths == 0))
        context.state[self, "lengths"] = lengths[:, None]

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        captions = context.state.pop((self, "captions"), None)
        if captions is None:
            return ()
        replacements = []
        newest = context.token_ids[:: context.copies, -1].tolist()
        for spans, caption, last in zip(image_spans(context), captions, newest, strict=True):
            # A prompt without a description is declined, but some token must stay.
            words: list[Sequence[int]] = [caption or (last,), *[()] * len(spans)]
            replacements.append([Replacement(*span, own) for span, own in zip(spans, words, strict=False)])
        return [rewritten(context, inputs_embeds, decoder_inputs, replacements, fused=self.fused)]

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if not branches:
            return logits
        apart = divergence(logits, branches[0], self.exponent)
        context.measure(self, size=apart, description=context.state[self, "lengths"])
        return counter(logits, branches[0], apart, self.alpha)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "divergence of the two distributions, 0 to 1; 'description': its tokens"}

    def _caption_prompts(self, context: DecodeContext) -> tuple[list[list[Token]], list[bool]]:
        """The prompts with `caption_prompt` for the user's last words, copies counted once, and which have
        such words; after the last image among them, unless all stand before it."""
        ids, layout = context.token_ids, context.layout
        if context.video_tokens is not None:  # a video is no part of the question either
            ids = ids.masked_fill(context.video_tokens.to(ids.device), context.image_token)
        request = context.processor.tokenizer(self.caption_prompt, add_special_tokens=False)["input_ids"]
        rows = (each[:: context.copies].tolist() for each in (ids, layout.real_tokens, context.image_blocks))
        prompts, has_question = [], []
        for prompt, real, block in zip(*rows, strict=True):
            first = real.index(True)
            question = find_question(prompt[first:], context.image_token, context.processor)
            words = sorted(first + place for place in question.tokens)
            prompts.append(_asked_anew(first, block, words, request))
            has_question.append(bool(words))
        return prompts, has_question


def _asked_anew(
    first: int, block: Sequence[bool], words: Sequence[int], request: Sequence[int]
) -> list[Token]:
    """A prompt from column `first` on, with other words for those of its question.

    Args:
        block: which columns show images.
        words: columns of the question; what stands between them leaves, too, but images.
        request: ids of the other words.
    """
    if not words:
        return [Token(column) for column in range(first, len(block))]
    shown = [column for column in range(words[0], words[-1]) if block[column]]
    place = next((column for column in words if column > max(shown, default=-1)), words[0])
    tokens: list[Token] = []
    for column in range(first, len(block)):
        if column == place:
            tokens += [Token(id=token) for token in request]
        if block[column] or not words[0] <= column <= words[-1]:
            tokens.append(Token(column))
    return tokens


def divergence(logits: Tensor, branch: Tensor, exponent: float) -> Tensor:
    """How far two distributions are apart, `(batch, 1)` in [0, 1] (arXiv 2406.01920, released code).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: of the branch, in the same form.
        exponent: of the differences of probabilities.
    """
    one, other = logits.softmax(dim=-1), finite(branch).softmax(dim=-1)
    terms = ((one - other).abs() ** exponent + 1).log2() * (one + other)
    return (terms.sum(dim=-1, keepdim=True) / 2).clamp(0, 1)


def counter(logits: Tensor, branch: Tensor, apart: Tensor, alpha: float) -> Tensor:
    """Contrast and cut that depend on how far two distributions are apart (arXiv 2406.01920).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: of the branch, in the same form.
        apart: see `divergence`, `(batch, 1)`.
        alpha: strength.
    """
    kept = logits >= logits.amax(dim=-1, keepdim=True) + apart.log()
    return rule_out(logits, contrast(logits, branch, alpha * (1 - apart)), kept)
