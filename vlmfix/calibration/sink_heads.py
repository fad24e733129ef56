"""Finding the heads whose attention sinks make a model answer wrong, for ACT."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import Calibration, Progress
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.modules import input_device
from vlmfix.inference.chat import prepare
from vlmfix.inference.pictures import ImageLike, open_images
from vlmfix.methods.attention.act import ACT
from vlmfix.methods.base import Method
from vlmfix.methods.baselines.output_shift import answer_ids, answer_margins

# Tokens in a pass, all its copies of the prompt together.
_TOKENS = 16384

# Fewer questions are worth a warning.
_FIRM = 100


@dataclass(frozen=True)
class YesNoQuestion:
    """A question about a picture.

    Args:
        image: the picture, or its path.
        text: as the model is asked.
        is_yes: the right answer.
    """

    image: ImageLike
    text: str
    is_yes: bool


def calibrate_sink_heads(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[YesNoQuestion],
    progress: Progress,
) -> Calibration:
    """Find the heads in which ACT makes answers right (arXiv 2406.15765), at the defaults of ACT.

    On one half of the questions ACT acts in one head at a time; heads with which one question or more is
    answered right beyond those without are listed. The released code leaves this step out. This library's
    own: a yes is likelier than a no as the next token, and on the other half the listed heads act together,
    which says whether they hold.

    Raises:
        ValueError: they are no questions, or too few, or no head makes more answers right.
    """
    if not all(isinstance(each, YesNoQuestion) for each in questions):
        raise ValueError(
            "act is calibrated on questions with the answers yes and no; give YesNoQuestion objects (on the "
            "command line a COCO folder with instances, as 'vlmfix scenes' writes)"
        )
    searched, held_out = _halves(questions)
    if not held_out:
        raise ValueError("act is calibrated on half of the questions; give two or more of a kind")
    if len(questions) < _FIRM:
        warnings.warn(
            f"{len(questions)} questions; which heads help is firm from about {_FIRM} on, so give more",
            stacklevel=2,
        )
    progress = progress or (lambda count: None)
    reader = _Reader(model, processor)
    stock, alone = 0, torch.zeros(len(reader.layers), reader.heads, dtype=torch.int64)
    sinks = torch.zeros(alone.shape)
    for question in searched:
        stock += reader.is_right(question)
        right, found = reader.each_alone(question)
        alone += right
        sinks += found
        progress(1)
    gains, asked = alone - stock, len(searched)
    order = gains.flatten().argsort(descending=True, stable=True).tolist()
    ranked = [divmod(number, reader.heads) for number in order]
    kept = [(layer, head) for layer, head in ranked if gains[layer, head] > 0]
    if not kept:
        raise ValueError(
            f"in no head alone does ACT make more of {asked} answers right than the {stock} without it; give "
            "more questions, or leave ACT out on this model"
        )
    listed = tuple((reader.layers[layer], head) for layer, head in kept)
    before, after, together = 0, 0, _Together(heads=listed)
    for question in held_out:
        before += reader.is_right(question)
        after += reader.is_right(question, together)
        progress(1)
    if after <= before:
        warnings.warn(
            f"on questions that they were not found on, the listed heads make {after} of {len(held_out)} "
            f"answers right, and {before} are without ACT; give more questions, or leave ACT out",
            stacklevel=2,
        )
    return Calibration(
        {"act_heads": [list(pair) for pair in sorted(listed)]},
        f"{len(questions)} yes/no questions: heads in which ACT alone makes one answer or more of {asked} "
        f"right beyond the {stock} without it; all together, of {len(held_out)} other questions {after} are "
        f"answered right, and {before} without",
        {
            "right without": f"{stock} of {asked}",
            "heads": len(listed),
            "right on held-out questions": f"{before} without, {after} with the heads, of {len(held_out)}",
        }
        | {
            f"head {reader.layers[layer]}:{head}": f"{int(gains[layer, head])} more right, "
            f"{float(sinks[layer, head]) / asked:.1f} sinks"
            for layer, head in kept[:10]
        },
    )


def _halves(questions: Sequence[YesNoQuestion]) -> tuple[list[YesNoQuestion], list[YesNoQuestion]]:
    """Two halves with as many questions to be answered yes."""
    kinds = [[each for each in questions if each.is_yes is is_yes] for is_yes in (True, False)]
    return [each for kind in kinds for each in kind[::2]], [each for kind in kinds for each in kind[1::2]]


class _Reader:
    """A model that answers questions under ACT in some heads.

    Args:
        model: a stock model.
        processor: its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self._model: Any = model
        self._processor = processor
        tokenizer: Any = processor
        self._ids = answer_ids(tokenizer.tokenizer)
        text = model.config.get_text_config()
        whole = ACT(heads="all").resolve(model.config, None)
        assert whole.last_layer is not None
        self.layers = range(whole.first_layer, whole.last_layer + 1)
        self.heads: int = text.num_attention_heads

    def is_right(self, question: YesNoQuestion, method: Method | None = None) -> bool:
        """Whether the model answers right, under a method."""
        inputs = self._inputs(question, 1)
        return bool(self._right(question, inputs, method))

    def each_alone(self, question: YesNoQuestion) -> tuple[Tensor, Tensor]:
        """With ACT in each head alone, whether the model answers right, and how many sinks there are, both
        `(layers, heads)`."""
        copies = max(1, min(self.heads, _TOKENS // self._inputs(question, 1)["input_ids"].shape[1]))
        inputs = self._inputs(question, copies)
        right, sinks = [], []
        for layer in self.layers:
            for start in range(0, self.heads, copies):
                own = torch.arange(start, start + copies).clamp_max(self.heads - 1)
                method = _OneHeadEach(
                    heads="all", first_layer=layer, last_layer=layer, own=own.to(self._model.device)
                )
                right.append(self._right(question, inputs, method)[: self.heads - start])
                sinks.append(method.found[-1].cpu()[: self.heads - start])
        shape = len(self.layers), self.heads
        return torch.cat(right).view(shape).long(), torch.cat(sinks).view(shape).float()

    def _inputs(self, question: YesNoQuestion, copies: int) -> Any:
        images = [open_images(question.image)] * copies
        inputs = prepare(images, [question.text] * copies, self._processor)
        return inputs.to(input_device(self._model), dtype=self._model.dtype)

    def _right(self, question: YesNoQuestion, inputs: Any, method: Method | None) -> Tensor:
        """Whether each copy of the question is answered right, `(copies,)` bool, on the CPU."""
        with torch.no_grad():
            if method is None:
                logits = self._model(**inputs, logits_to_keep=1).logits
            else:
                with method(self._model, self._processor):
                    logits = self._model(**inputs, logits_to_keep=1).logits
        says_yes = answer_margins(logits[:, -1], *self._ids) > 0
        return (says_yes == question.is_yes).cpu()


@dataclass(frozen=True, kw_only=True)
class _Together(ACT):
    """ACT, without a warning where a question has no sinks."""

    edits: ClassVar = False


@dataclass(frozen=True, kw_only=True)
class _OneHeadEach(_Together):
    """ACT in another head of one layer in each sequence.

    Args:
        own: the head of each sequence, `(batch,)` int64.
        found: number of its sinks, `(batch,)` a run.
    """

    own: Tensor = field(default_factory=lambda: torch.zeros(1).long(), compare=False)
    found: list[Tensor] = field(default_factory=list, compare=False)

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        edited, own = super().edit_weights(context, layer, weights), self.own.to(weights.device)
        if context.has_newest_row:
            counts = context.state[self, layer, "sinks"].sum(dim=-1)
            self.found.append(counts.gather(1, own[:, None])[:, 0])
        chosen = torch.arange(weights.shape[1], device=weights.device) == own[:, None]
        return torch.where(chosen[:, :, None, None], edited, weights)
