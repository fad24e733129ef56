"""GIFT: where the gaze shifts while the question is read, looked at harder while it is answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ActsInStaticSteps, ReadsLastRowAgain
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.static_edits import Edit, StaticEdits
from vlmfix.engine.stats import Sums
from vlmfix.errors import UnsupportedError
from vlmfix.inference.chat import find_question
from vlmfix.inference.keywords import CONTENT_TAGS, Spans, keyword_extractor
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range, check_whole, sequence
from vlmfix.models.profiles import Profile

DEFAULT_BOOST = 4.0


@register_method("gift")
@dataclass(frozen=True, kw_only=True)
class GIFT(Method, ReadsLastRowAgain, ActsInStaticSteps):
    """Gaze Shift-Guided Cross-modal Fusion Enhancement (arXiv 2510.22067).

    While the question's informative words are read, the increases of attention to image tokens in one layer
    give a saliency map. In the enhanced layers of the last prompt row and of all new rows, heads that look at
    the image have their image weights multiplied by `exp(image_boost * saliency)`, and heads that look at the
    question get the same overall gain there, so that the balance is kept. The prompt is read once, where the
    released code reads it twice; only its last token runs again under the method.

    The released code knows words by themselves and their part of speech, so that of equal ones the last alone
    is informative; here all are, as in the paper. Without an informative word, where it gives NaN, here the
    whole question is informative. A prompt without a question, or whose words draw no gaze to the image (as
    before it, where it is not seen yet), is left as it is, unless `query_gain` has something to do.

    Args:
        image_boost: strength on the image; 0 together with `query_gain` 1 leaves the model as it is; None:
            from the checkpoint's profile, else 4.
        query_gain: further factor on the question's weights; 1 in the paper.
        head_keep_fraction: share of the heads that is used, in [0, 1], for the map, the image and the
            question.
        clip_std: the map is clipped this many standard deviations from its mean.
        saliency_layer: layer of the map, 0-based; None: from the checkpoint's profile.
        enhanced_layers: first and last layer that is edited; None: from the checkpoint's profile.
        content_tags: universal part-of-speech tags of informative words, for spaCy.
        keyword_extractor: from a question to the character spans of its informative words; None: spaCy with
            en_core_web_sm where both are installed (`vlmfix[gift]`), else all words but function words.
    """

    image_boost: float | None = None
    query_gain: float = 1.0
    head_keep_fraction: float = 0.5
    clip_std: float = 3.0
    saliency_layer: int | None = None
    enhanced_layers: tuple[int, int] | None = None
    content_tags: tuple[str, ...] = CONTENT_TAGS
    keyword_extractor: Callable[[str], Spans] | None = None

    info = MethodInfo(
        stage="attention",
        changes="weights: to salient image tokens and to the question",
        where="last prompt row and new rows; middle layers of the profile",
        forwards=1.0,
        provenance="released code",
        paper="2510.22067",
        decoding="greedy, sampling, beams, batches, with the processor",
    )
    identity_parameters: ClassVar = {"image_boost": 0, "query_gain": 1}
    search_space: ClassVar = {"image_boost": Between(0.2, 10, log=True)}
    needs_processor: ClassVar = True
    keeps_prefix: ClassVar = True

    def __post_init__(self) -> None:
        if self.image_boost is not None:
            check_range("image_boost", self.image_boost, 0, 20)
        check_range("query_gain", self.query_gain, 0, 100)
        check_range("head_keep_fraction", self.head_keep_fraction, 0, 1)
        check_range("clip_std", self.clip_std, 0, 1000)
        if self.saliency_layer is not None:
            check_whole("saliency_layer", self.saliency_layer, 0)
        if self.enhanced_layers is not None:
            bounds = sequence("enhanced_layers", self.enhanced_layers, "a first and a last layer")
            object.__setattr__(self, "enhanced_layers", bounds)
        tags = sequence("content_tags", self.content_tags, "part-of-speech tags such as NOUN")
        if not all(isinstance(tag, str) for tag in tags):
            raise ValueError(f"content_tags is {tags!r}; it must hold part-of-speech tags such as NOUN")
        object.__setattr__(self, "content_tags", tags)
        if self.keyword_extractor is not None and not callable(self.keyword_extractor):
            raise ValueError(
                f"keyword_extractor is {self.keyword_extractor!r}; it must be a function, given in Python"
            )

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        def known(value: Any, name: str) -> Any:
            return profile.get(name) if value is None and profile is not None else value

        saliency_layer = known(self.saliency_layer, "gift_saliency_layer")
        enhanced_layers = known(self.enhanced_layers, "gift_enhanced_layers")
        image_boost = known(self.image_boost, "gift_image_boost")
        if saliency_layer is None or enhanced_layers is None:
            raise ValueError(
                "no saliency_layer and enhanced_layers are known for this checkpoint; find them with 'vlmfix "
                "calibrate --model MODEL --images DIR --method gift', or pass both"
            )
        last = config.get_text_config().num_hidden_layers - 1
        if type(saliency_layer) is not int or not 0 <= saliency_layer <= last:
            raise ValueError(
                f"saliency_layer is {saliency_layer!r}; the layers of this model go from 0 to {last}"
            )
        heads = config.get_text_config().num_attention_heads
        if int(heads * self.head_keep_fraction) == 0:
            raise ValueError(
                f"head_keep_fraction is {self.head_keep_fraction:g}, which keeps none of the {heads} heads "
                f"of this model; use {1 / heads:.3g} to 1"
            )
        bounds = list(enhanced_layers)
        if (
            len(bounds) != 2
            or any(type(each) is not int for each in bounds)
            or not 0 <= bounds[0] <= bounds[1] <= last
        ):
            raise ValueError(
                f"enhanced_layers is {tuple(bounds)}; it must be a first and a last layer, from 0 to {last}"
            )
        return dataclasses.replace(
            self,
            saliency_layer=saliency_layer,
            enhanced_layers=(bounds[0], bounds[1]),
            image_boost=DEFAULT_BOOST if image_boost is None else image_boost,
        )

    def begin(self, context: DecodeContext) -> None:
        assert self.saliency_layer is not None
        assert self.enhanced_layers is not None
        first, last = self.enhanced_layers
        context.check_attention(type(self).__name__, [self.saliency_layer])
        context.check_attention(type(self).__name__, range(first, last + 1))
        if not context.layout.has_image:
            return
        if context.prompt_ids is None:
            raise UnsupportedError(
                "the prompt is given as inputs_embeds alone, so that GIFT cannot read the question; pass its "
                "input_ids to generate as well"
            )
        extract, name = self._extractor()
        question, words = (
            torch.zeros_like(context.layout.real_tokens),
            torch.zeros_like(context.layout.real_tokens),
        )
        found: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
        fallbacks = 0
        starts = context.layout.real_tokens.int().argmax(dim=1).tolist()
        prompts = context.prompt_ids
        if context.video_tokens is not None:  # a video is no part of the question either
            prompts = prompts.masked_fill(context.video_tokens.to(prompts.device), context.image_token)
        for row, (start, ids) in enumerate(zip(starts, prompts.tolist(), strict=True)):
            key = tuple(ids[start:])
            if key not in found:  # beams share their prompt
                asked = find_question(key, context.image_token, context.processor)
                found[key] = (list(asked.tokens), asked.tokens_of(extract(asked.text)))
            places, informative = found[key]
            fallbacks += not informative
            question[row, [start + place for place in places]] = True
            words[row, [start + place for place in informative or places]] = True
        context.decline(self, "no question", context.layout.image_tokens.any(dim=1) & ~question.any(dim=1))
        context.state[self, "question"], context.state[self, "words"] = question, words
        context.state[self, "keywords"] = {"keyword_extractor": name, "keyword_fallback": fallbacks}

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        if not context.layout.has_image:
            return None
        assert self.enhanced_layers is not None
        if context.is_prefill:
            rows = self._reading_rows(context, layer) if layer == self.saliency_layer else None
            return rows if rows is not None and len(rows.index) else None
        first, last = self.enhanced_layers
        acts = first <= layer <= last and (self, "saliency") in context.state
        return context.layout_at(layer).last_row if acts else None

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        if not context.is_prefill:
            return
        layout, rows = context.layout_at(layer), self._reading_rows(context, layer)
        index = rows.index.to(weights.device)
        # Rows stand in pairs: a word, and the token before it.
        follows = torch.cat([index.new_zeros(1), index.diff()]) == 1
        words = layout.gather(context.state[self, "words"]).to(weights.device)[:, index] & follows
        shifts = gaze_shifts(weights, weights.roll(1, dims=2))
        saliency = saliency_map(
            shifts,
            words,
            layout.image_tokens.to(weights.device),
            head_keep_fraction=self.head_keep_fraction,
            clip_std=self.clip_std,
        )
        if self.query_gain == 1:
            self._decline_flat(context, (saliency > 0).any(dim=1).to(context.layout.image_tokens.device))
            if not bool(self.takes(context).any()):
                return
        whole = torch.zeros(context.layout.image_tokens.shape, device=weights.device)
        places = layout.positions
        context.state[self, "saliency"] = (
            saliency if places is None else whole.scatter(1, places.to(weights.device), saliency)
        )

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return (self, "saliency") in context.state

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        if context.is_prefill:
            return weights
        groups = self._groups(context, context.layout_at(layer))
        return groups.to(weights.device).enhance(weights, **self._numbers)

    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> StaticEdits | None:
        if self.rows(context, layer) is None:
            return None
        layout = context.layout_at(layer)
        groups = self._groups(context, layout).with_room(keys - layout.length)
        return StaticEdits(weights=Edit(_enhanced, groups, self._numbers))

    @property
    def _numbers(self) -> dict[str, float]:
        return {"head_keep_fraction": self.head_keep_fraction, "query_gain": self.query_gain}

    def report(self, context: DecodeContext, sums: Sums) -> None:
        sums.details = dict(context.state.get((self, "keywords"), {}))

    def inactive_reason(self, context: DecodeContext) -> str:
        return (
            "no salient image token is left in the enhanced layers, or image_boost and query_gain are too "
            "small to move a weight; choose earlier layers or raise image_boost"
        )

    def _decline_flat(self, context: DecodeContext, varies: Tensor) -> None:
        """Leave prompts as they are whose saliency map is not known to vary, `(batch,)` bool."""
        layout = context.layout
        flat = self.takes(context) & ~varies
        sees = (context.state[self, "words"] & ~layout.before_first_image).any(dim=1)
        context.decline(self, "no question after the image", flat & ~sees)
        reason = "the question draws no gaze to the image" if self.clip_std else "clip_std 0 flattens the map"
        context.decline(self, reason, flat & sees)

    def _extractor(self) -> tuple[Callable[[str], Spans], str]:
        if self.keyword_extractor is not None:
            return self.keyword_extractor, getattr(self.keyword_extractor, "__name__", "custom")
        return keyword_extractor(self.content_tags)

    def _reading_rows(self, context: DecodeContext, layer: int) -> Rows:
        """The informative words and the tokens before them."""
        key = (self, "rows")
        if key not in context.state:
            words = context.layout_at(layer).gather(context.state[self, "words"])
            before = torch.cat([words[:, 1:], words.new_zeros(len(words), 1)], dim=1)
            context.state[key] = Rows.where(words | before)
        rows: Rows = context.state[key]
        return rows

    def _groups(self, context: DecodeContext, layout: PromptLayout) -> TokenGroups:
        """Worked out once a run and set of tokens."""
        if (self, layout) not in context.state:
            context.state[self, layout] = self._groups_of(context, layout)
        groups: TokenGroups = context.state[self, layout]
        return groups

    def _groups_of(self, context: DecodeContext, layout: PromptLayout) -> TokenGroups:
        saliency: Tensor = layout.gather(context.state[self, "saliency"])
        assert self.image_boost is not None
        takes = self.takes(context)[:, None]
        image = layout.image_tokens & takes
        question = layout.gather(context.state[self, "question"]) & layout.real_tokens & takes
        return TokenGroups.of(
            torch.exp(self.image_boost * saliency), image.to(saliency.device), question.to(saliency.device)
        )


def gaze_shifts(attention: Tensor, before: Tensor) -> Tensor:
    """Increases of attention from one row to the next (arXiv 2510.22067).

    Args:
        attention: weights of some rows, `(batch, heads, rows, keys)`.
        before: weights of the row before each.
    """
    return (attention - before).clamp_min(0)


def saliency_map(
    shifts: Tensor,
    informative_rows: Tensor,
    image_tokens: Tensor,
    *,
    head_keep_fraction: float = 0.5,
    clip_std: float = 3.0,
) -> Tensor:
    """Saliency of image tokens from gaze shifts at informative words (arXiv 2510.22067).

    Heads with the largest shifts to the image count; the mean over them and the words is clipped at
    `clip_std` unbiased standard deviations from its mean over the image and scaled to [0, 1].

    Args:
        shifts: `(batch, heads, rows, keys)`.
        informative_rows: which rows are informative, `(batch, rows)` bool.
        image_tokens: `(batch, keys)` bool.

    Returns:
        `(batch, keys)` float32 in [0, 1]; 0 outside the image and where the map is constant.
    """
    total = torch.einsum("bhrk,br->bhk", shifts.float(), informative_rows.float())
    total = total.masked_fill(~image_tokens[:, None], 0.0)
    kept = top_heads(total.sum(dim=-1), head_keep_fraction).float()
    words = informative_rows.sum(dim=1, keepdim=True)
    count = kept.sum(dim=1, keepdim=True) * words
    mean_map = (total * kept[..., None]).sum(dim=1) / count.clamp_min(1)
    size = image_tokens.sum(dim=1, keepdim=True)
    mean = mean_map.sum(dim=1, keepdim=True) / size.clamp_min(1)
    squares = (mean_map - mean).square().masked_fill(~image_tokens, 0.0).sum(dim=1, keepdim=True)
    spread = clip_std * (squares / (size - 1).clamp_min(1)).sqrt()
    clipped = mean_map.clamp(mean - spread, mean + spread)
    low = clipped.masked_fill(~image_tokens, torch.inf).amin(dim=1, keepdim=True)
    high = clipped.masked_fill(~image_tokens, -torch.inf).amax(dim=1, keepdim=True)
    varies = image_tokens & (high > low)
    return torch.where(varies, (clipped - low) / (high - low), 0.0)


def top_heads(scores: Tensor, fraction: float) -> Tensor:
    """The `floor(heads * fraction)` heads with the largest scores, `(batch, heads, ...)` bool."""
    count = int(scores.shape[1] * fraction)
    best = scores.topk(count, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def enhance(
    weights: Tensor,
    image_weights: Tensor,
    image_tokens: Tensor,
    question_tokens: Tensor,
    *,
    head_keep_fraction: float = 0.5,
    query_gain: float = 1.0,
) -> Tensor:
    """Raise salient image tokens, and the question by the same gain (arXiv 2510.22067).

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.
        image_weights: factors on image tokens, `(batch, keys)`.
        image_tokens: `(batch, keys)` bool.
        question_tokens: `(batch, keys)` bool.
        head_keep_fraction: share of the heads that look most at the image, and most at the question, in a
            row.
        query_gain: further factor on the question.

    Returns:
        Weights of the same shape and dtype whose rows sum to 1; heads that are not chosen, and samples
        without an image, are unchanged to the bit.
    """
    return TokenGroups.of(image_weights, image_tokens, question_tokens).enhance(
        weights, head_keep_fraction=head_keep_fraction, query_gain=query_gain
    )


def _enhanced(
    weights: Tensor, members: Tensor, changes: Tensor, has_image: Tensor, has_boost: Tensor, **numbers: float
) -> Tensor:
    return TokenGroups(members, changes, has_image, has_boost).enhance(weights, **numbers)


class TokenGroups(NamedTuple):
    """The keys that `enhance` tells apart, prepared once a prompt for the steps of its decoding.

    Args:
        members: columns image, question, and factors on image tokens, `(batch, 1, keys, 3)` float32.
        changes: factor on image tokens less 1, and 1 at the question, `(batch, 1, 1, 2, keys)`.
        has_image: `(batch, 1, 1)` bool.
        has_boost: whether the factor on an image token is other than 1, `(batch, 1, 1)` bool.
    """

    members: Tensor
    changes: Tensor
    has_image: Tensor
    has_boost: Tensor

    @classmethod
    def of(cls, image_weights: Tensor, image_tokens: Tensor, question_tokens: Tensor) -> TokenGroups:
        """Groups of `(batch, keys)` factors and masks."""
        image, question = image_tokens.float(), question_tokens.float()
        factors = image_weights.float() * image
        return cls(
            torch.stack([image, question, factors], dim=-1)[:, None],
            torch.stack([factors - image, question], dim=1)[:, None, None],
            image_tokens.any(dim=1)[:, None, None],
            (factors != image).any(dim=1)[:, None, None],
        )

    def to(self, device: torch.device) -> TokenGroups:
        """The same groups on `device`; itself when they are there already."""
        return self if self.members.device == device else TokenGroups(*(each.to(device) for each in self))

    def with_room(self, keys: int) -> TokenGroups:
        """The same groups with room for so many generated keys, which belong to none."""
        return self._replace(
            members=nn.functional.pad(self.members, (0, 0, 0, keys)),
            changes=nn.functional.pad(self.changes, (0, keys)),
        )

    def enhance(self, weights: Tensor, *, head_keep_fraction: float, query_gain: float) -> Tensor:
        """See the function of this name; `weights` may have more keys than the groups cover."""
        attention = weights.to(torch.promote_types(weights.dtype, torch.float32))
        keys = self.members.shape[2]
        prompt, generated = attention.split([keys, attention.shape[-1] - keys], dim=-1)
        image, question, boosted = (prompt @ self.members.to(prompt.dtype)).unbind(dim=-1)
        # By factors of 1 the sum of a row would still be rounded.
        looks_at_image = top_heads(image, head_keep_fraction) & self.has_boost
        asking = top_heads(question, head_keep_fraction) & (
            self.has_boost if query_gain == 1 else self.has_image
        )
        mass = (image * looks_at_image).sum(dim=1, keepdim=True)
        gain = (boosted * looks_at_image).sum(dim=1, keepdim=True) / mass
        more = asking * (query_gain * torch.where(mass > 0, gain, 1.0) - 1)
        change = (
            looks_at_image[..., None] * self.changes[..., 0, :] + more[..., None] * self.changes[..., 1, :]
        )
        edited = torch.cat([torch.addcmul(prompt, prompt, change.to(prompt.dtype)), generated], dim=-1)
        # The sum is 1, but for models with attention sinks of their own, whose part stays.
        edited = edited * (attention.sum(dim=-1, keepdim=True) / edited.sum(dim=-1, keepdim=True))
        chosen = (looks_at_image | asking)[..., None]
        return torch.where(chosen, edited, attention).to(weights.dtype)
