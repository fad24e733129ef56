"""Attention to the generated text where a model names objects, for AdaIAT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.heads import AnnotatedImage, judged_captions
from vlmfix.calibration.results import PROMPT, Calibration, Progress, prompt_inputs, with_answer
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.methods.base import Method

READS = 2
"""How often each picture is read."""


def calibrate_generated_attention(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[AnnotatedImage],
    progress: Progress,
) -> Calibration:
    """Find the attention to generated text at real and hallucinated objects, for AdaIAT (arXiv 2603.04908).

    The model captions each picture. In the row that predicts the first token of an object's word, the mean
    weight of a generated token is noted for each head, the row's own token included; objects that begin a
    caption have no such token and are left out.

    Raises:
        ValueError: the pictures are not annotated, or the captions name no hallucinated or no correct object.
    """
    progress = progress or (lambda count: None)
    captions = judged_captions("adaiat", model, processor, images, progress, reads=READS)
    found, hallucinated = [], []
    for caption in captions:
        places = dict(zip(caption.places, caption.hallucinated, strict=True))
        wanted = sorted(place for place in places if place > 0)
        if wanted:
            inputs = prompt_inputs(model, processor, caption.image, PROMPT)
            observer = _AttentionToText(start=inputs["input_ids"].shape[1], places=tuple(wanted))
            with observer(model), torch.no_grad():
                model(**with_answer(inputs, caption.token_ids))
            found.append(torch.stack(observer.seen, dim=1))
            hallucinated += [places[place] for place in wanted]
        progress(1)
    wrong = torch.tensor(hallucinated).bool()
    if not 0 < int(wrong.sum()) < len(wrong):
        raise ValueError(
            f"{len(images)} captions name {int(wrong.sum())} hallucinated and {int((~wrong).sum())} correct "
            "objects after their first token, but both are needed; give more pictures, or such as the model "
            "gets wrong"
        )
    attention = torch.cat(found)
    tables = {"real": attention[~wrong].mean(dim=0), "hallucinated": attention[wrong].mean(dim=0)}
    ratio = tables["real"].sum(dim=1) / tables["hallucinated"].sum(dim=1).clamp_min(1e-12)
    return Calibration(
        {
            f"adaiat_{name}": [[float(f"{weight:.4g}") for weight in row] for row in table.tolist()]
            for name, table in tables.items()
        },
        f"{len(images)} captions with {int(wrong.sum())} hallucinated and {int((~wrong).sum())} correct "
        "objects: mean attention of each head to a generated token, in rows that predict them",
        {
            "hallucinated object tokens": int(wrong.sum()),
            "correct object tokens": int((~wrong).sum()),
            "real to hallucinated by layer": [round(float(each), 3) for each in ratio],
        },
    )


@dataclass(frozen=True, kw_only=True)
class _AttentionToText(Method):
    """Mean attention to an answer's tokens in rows that predict some of them, layer by layer.

    Args:
        start: number of tokens before the answer.
        places: of the predicted tokens in the answer, ascending, 1 or more.
    """

    start: int
    places: tuple[int, ...]
    seen: list[Tensor] = field(default_factory=list, compare=False)

    edits: ClassVar = False

    def rows(self, context: DecodeContext, layer: int) -> Rows:
        wanted = torch.zeros_like(context.layout.image_tokens)
        wanted[:, [self.start + place - 1 for place in self.places]] = True
        return Rows.where(wanted)

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        sums = weights[0, :, :, self.start :].sum(dim=-1).T.cpu()
        self.seen.append(sums / torch.tensor(self.places)[:, None])
