"""Finding the heads that make a model name objects that are not there, for AD-HH."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import (
    PROMPT,
    Calibration,
    Progress,
    prompt_inputs,
)
from vlmfix.engine.caches import with_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.prefix_cache import shared_prefix
from vlmfix.engine.vision_cache import cached_vision
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.chat import text_and_spans
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.base import Method

# Published: 20 of the 1024 heads of LLaVA-1.5-7B.
_KEPT = 20 / 1024

_CAPTION = {"max_new_tokens": 128}

# Tokens in the cache of a pass, all its rows together: 8 GiB for LLaVA-1.5-7B in half precision.
_TOKENS = 16384


class ObjectWord(NamedTuple):
    """An object that a caption names.

    Args:
        start: place of the first character of the word in the caption.
        hallucinated: whether the object is not in the picture.
    """

    start: int
    hallucinated: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture whose captions can be judged.

    Args:
        image: the picture, or its path.
        judge: finds the objects that a caption of it names.
    """

    image: ImageLike
    judge: Callable[[str], Sequence[ObjectWord]]


def calibrate_heads(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[AnnotatedImage],
    progress: Progress,
) -> Calibration:
    """Find the hallucination heads for AD-HH (github.com/TianyunYoung/Hallucination-Attribution, ICLR 2025).

    The model captions each picture. At each object that it names, one head at a time is silenced, and the
    fall of the object's probability is the head's influence on it. Heads are kept whose mean influence on
    hallucinated objects exceeds that on correct ones the most.

    This library's own reading: a silenced head gives zeros in the row that predicts the first token of the
    word, and nowhere else; of models of another size as large a share of the heads is kept as the published
    20 of 1024, two at least.

    Raises:
        ValueError: the pictures are not annotated, or the captions name no hallucinated or no correct object.
    """
    if not all(isinstance(each, AnnotatedImage) for each in images):
        raise ValueError(
            "adhh is calibrated on captions that can be judged; give AnnotatedImage objects (on the command "
            "line a COCO folder with instances, as 'vlmfix scenes' writes)"
        )
    captioning = plain_decoding(model, _CAPTION)
    influences: list[Tensor] = []
    hallucinated: list[bool] = []
    for each in images:
        (answer,) = answer_batch(model, processor, [(each.image, PROMPT)], **captioning)
        text, spans = text_and_spans(answer.token_ids, processor, skip_special_tokens=True)
        words = each.judge(text)
        places = [next(place for place, (_, end) in enumerate(spans) if end > word.start) for word in words]
        inputs = prompt_inputs(model, processor, each.image, PROMPT)
        influences.append(head_influences(model, inputs, answer.token_ids, places))
        hallucinated += [word.hallucinated for word in words]
        if progress is not None:
            progress(1)
    wrong, right = sum(hallucinated), len(hallucinated) - sum(hallucinated)
    if not wrong or not right:
        raise ValueError(
            f"{len(images)} captions name {wrong} hallucinated and {right} correct objects, but both kinds "
            "are needed to compare; give more pictures, or such as the model gets wrong"
        )
    on_wrong, on_right = mean_influences(torch.cat(influences), torch.tensor(hallucinated))
    order = ranking(on_wrong, on_right)
    kept = max(2, round(_KEPT * len(order)))
    shown = {
        f"head {layer}:{head}": f"{on_wrong[layer, head]:.4f} on hallucinated objects, "
        f"{on_right[layer, head]:.4f} on correct ones"
        for layer, head in order[: max(10, kept)]
    }
    return Calibration(
        {"adhh_heads": [list(pair) for pair in order[:kept]]},
        f"{len(images)} captions with {wrong} hallucinated and {right} correct objects: heads whose silence "
        "lowers the probability of hallucinated objects the most, compared with that of correct ones",
        {"hallucinated object tokens": wrong, "correct object tokens": right} | shown,
    )


def mean_influences(influences: Tensor, hallucinated: Tensor) -> tuple[Tensor, Tensor]:
    """Mean influence of each head on hallucinated and on correct objects, `(layers, heads)` each.

    Args:
        influences: fall of the probability of each object token, `(tokens, layers, heads)`.
        hallucinated: which of the objects are not there, `(tokens,)` bool; some are, and some are not.
    """
    return influences[hallucinated].mean(dim=0), influences[~hallucinated].mean(dim=0)


def ranking(on_hallucinated: Tensor, on_correct: Tensor) -> list[tuple[int, int]]:
    """Layer and head by the difference of the mean influences, `(layers, heads)`; the largest first."""
    order = (on_hallucinated - on_correct).flatten().argsort(descending=True, stable=True)
    heads = on_correct.shape[1]
    return [divmod(index, heads) for index in order.tolist()]


@torch.no_grad()
def head_influences(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], token_ids: Sequence[int], places: Sequence[int]
) -> Tensor:
    """How far the probability of tokens of an answer falls without each head.

    Args:
        model: a stock model.
        inputs: of one prompt, as from the processor.
        token_ids: the answer.
        places: of the tokens in question.

    Returns:
        Probability with all heads less that without the one, `(places, layers, heads)` float32.
    """
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    # The first row keeps all of its heads.
    each_alone = torch.eye(layers * heads + 1, dtype=torch.bool)[:, 1:].view(-1, layers, heads)
    ablation = _Ablation()
    probabilities = torch.empty(len(places), len(each_alone))
    with ablation(model), cached_vision(model), shared_prefix(model):
        for index, place in enumerate(places):
            found = []
            rows = max(1, _TOKENS // (inputs["input_ids"].shape[1] + place))
            for silenced in each_alone.split(rows):
                ablation.silenced[:] = [silenced]
                batch = _continued(inputs, token_ids[:place], len(silenced))
                cache = DynamicCache()
                logits = model(**with_cache(model, batch, cache), use_cache=True, logits_to_keep=1).logits
                found.append(logits[:, -1].float().softmax(dim=-1)[:, token_ids[place]])
            probabilities[index] = torch.cat(found)
    return (probabilities[:, :1] - probabilities[:, 1:]).view(-1, layers, heads)


@dataclass(frozen=True, kw_only=True)
class _Ablation(Method):
    """Silences heads in the last row of each prompt.

    Args:
        silenced: its only item says which heads of each sequence, `(batch, layers, heads)` bool.
    """

    edits: ClassVar = False  # an experiment, whose activity nobody counts
    keeps_prefix: ClassVar = True

    silenced: list[Tensor] = field(default_factory=list, compare=False)

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        silenced = self.silenced[0][:, layer, :, None].to(heads.device)
        last = heads[:, -1:].masked_fill(silenced[:, None], 0)
        return torch.cat([heads[:, :-1], last], dim=1)


def _continued(inputs: Mapping[str, Tensor], token_ids: Sequence[int], copies: int) -> dict[str, Any]:
    """Model inputs of so many copies of a prompt and the answer so far."""
    prompt = inputs["input_ids"]
    new = torch.tensor([token_ids], dtype=prompt.dtype, device=prompt.device)
    behind = {"input_ids": new, "attention_mask": torch.ones_like(new)}
    batch = {}
    for name, value in inputs.items():
        if value.shape == prompt.shape:  # one value a token; those of kinds of tokens are 0 for text
            value = torch.cat([value, behind.get(name, torch.zeros_like(new)).to(value.dtype)], dim=1)
        batch[name] = value.repeat(copies, *[1] * (value.ndim - 1))
    return batch
