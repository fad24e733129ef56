"""Finding the layers of gaze shifts of a checkpoint, for GIFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import QUESTIONS, Calibration, Progress, prompt_inputs
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.attention.gift import GIFT, gaze_shifts

# Enhanced layers of LLaVA-1.5-7B as shares of its 32 layers: 12 to 22.
_ENHANCED = (12 / 32, 22 / 32)


def calibrate_gift(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[ImageLike], progress: Progress
) -> Calibration:
    """Find the layers for GIFT (arXiv 2510.22067): the map from the layer whose gaze shifts are largest.

    Of the middle half of the layers, since the first ones shift by the word alone (this library's own rule).
    The paper chooses the enhanced layers by eye; here they lie at the depth of those of LLaVA-1.5-7B.
    """
    layers = model.config.get_text_config().num_hidden_layers
    observer = _GazeShifts(saliency_layer=0, enhanced_layers=(0, 0))
    totals = torch.zeros(layers)
    for number, image in enumerate(images):
        inputs = prompt_inputs(model, processor, image, QUESTIONS[number % len(QUESTIONS)])
        with observer(model, processor), torch.no_grad():
            model(**inputs)
        totals += torch.stack(observer.seen).cpu()
        observer.seen.clear()
        if progress is not None:
            progress(1)
    start, end = layers // 4, max(3 * layers // 4, 1)
    first, last = (min(round(share * layers), layers - 1) for share in _ENHANCED)
    means = [round(float(total), 4) for total in totals / len(images)]
    return Calibration(
        {
            "gift_saliency_layer": start + int(totals[start:end].argmax()),
            "gift_enhanced_layers": [first, last],
        },
        f"{len(images)} image prompts: largest total positive change of attention to the image in the middle "
        "half of the layers; enhanced layers at the depth of those of LLaVA-1.5-7B",
        {"total positive change by layer": means},
    )


@dataclass(frozen=True, kw_only=True)
class _GazeShifts(GIFT):
    """Total positive change of attention to the image at informative words, of every layer of a prefill."""

    edits: ClassVar = False

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return self._reading_rows(context, layer)

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        words = context.state[self, "words"].to(weights.device)[:, self._reading_rows(context, layer).index]
        shifts = gaze_shifts(weights, weights.roll(1, dims=2)) * words[:, None, :, None]
        self.seen.append(shifts[..., context.layout.image_tokens[0]].sum())

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return False
