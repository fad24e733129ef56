"""The layer after which answers hardly need the image any more, for DyVTE."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import (
    PROMPT,
    QUESTIONS,
    Calibration,
    Progress,
    prompt_inputs,
    with_answer,
)
from vlmfix.engine import tokens
from vlmfix.engine.layout import PromptLayout
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.pruning.dyvte import DyVTE, text_features

_ANSWER = {"max_new_tokens": 64}
_BATCH = 8

AGREEMENT = 0.99
LOSS_RATIO = 1.03
SHARE = 0.95


@dataclass(frozen=True, eq=False)
class ExitTrial:
    """What becomes of an answer when the image tokens leave after each layer but the last.

    Args:
        features: what a gate sees of the prompt, `(layers, 2 hidden)` float32.
        agreement: share of the answer's tokens at which the likeliest token stays, `(layers,)`.
        loss: mean cross-entropy of the answer, `(layers,)`.
        stock_loss: the same where the image tokens stay.
    """

    features: Tensor
    agreement: Tensor
    loss: Tensor
    stock_loss: Tensor

    @property
    def exits(self) -> Tensor:
        """The label of each layer, see `exit_labels`."""
        return exit_labels(self.agreement, self.loss, self.stock_loss)


def exit_labels(
    agreement: Tensor,
    loss: Tensor,
    stock_loss: Tensor,
    *,
    agreement_threshold: float = AGREEMENT,
    loss_ratio_threshold: float = LOSS_RATIO,
) -> Tensor:
    """Whether image tokens may leave (arXiv 2411.19628): the answer stays, and its loss as good as stays.

    Args:
        agreement: share of the tokens that stay, `(layers,)`.
        loss: of the answer without image tokens after a layer, `(layers,)`.
        stock_loss: of the answer with them.
        agreement_threshold: to be exceeded.
        loss_ratio_threshold: not to be reached.

    Returns:
        `(layers,)` bool.
    """
    return (agreement > agreement_threshold) & (loss < loss_ratio_threshold * stock_loss)


def calibrate_exit_layer(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[ImageLike], progress: Progress
) -> Calibration:
    """Find the layer for DyVTE without gates (a reconstruction on the labels of arXiv 2411.19628): the first
    after which the image tokens may leave in 95 % of the prompts, or else, with a warning, the last possible.

    The answers are this model's own, greedy: a description of each picture, and one of four questions.
    """
    trials = list(exit_trials(model, processor, images, progress))
    shares = [
        round(float(share), 4) for share in torch.stack([each.exits for each in trials]).float().mean(dim=0)
    ]
    agreement = torch.stack([each.agreement for each in trials]).mean(dim=0)
    found = next((layer for layer, share in enumerate(shares) if share >= SHARE), None)
    layer = len(shares) - 1 if found is None else found
    reached = f"after layer {layer} image tokens may leave in {100 * shares[layer]:.1f} %"
    if found is None:
        reached += f" of {len(trials)} answers, the last layer for it, and in {100 * SHARE:g} % after none"
        warnings.warn(f"{reached}; expect other answers under dyvte on this model", stacklevel=2)
    else:
        reached += f" of {len(trials)} answers, the first layer with {100 * SHARE:g} % or more"
    return Calibration(
        {"dyvte_exit_layer": layer},
        f"{len(images)} pictures with two prompts each: {reached}",
        {
            "answers that stay, by layer": shares,
            "tokens that stay, by layer": [round(float(share), 4) for share in agreement],
        },
    )


def exit_trials(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[ImageLike],
    progress: Progress,
    questions: int = 1,
) -> Iterator[ExitTrial]:
    """Let image tokens leave after each layer, for a description of each picture and some questions.

    Args:
        model: a stock model.
        processor: its processor.
        images: the pictures.
        progress: called with 1 for each picture.
        questions: how many for each picture, up to four.
    """
    decoding = plain_decoding(model, _ANSWER)
    for start in range(0, len(images), _BATCH):
        asked = [
            (image, [PROMPT, *(QUESTIONS[(number + more) % len(QUESTIONS)] for more in range(questions))])
            for number, image in enumerate(images[start : start + _BATCH], start)
        ]
        pairs = [Conversation.of(image, prompt) for image, prompts in asked for prompt in prompts]
        answers = iter(answer_batch(model, processor, pairs, **decoding))
        for image, prompts in asked:
            for prompt, answer in zip(prompts, answers, strict=False):
                yield _trial(model, processor, image, prompt, answer.token_ids)
            if progress is not None:
                progress(1)


def _trial(
    model: PreTrainedModel, processor: ProcessorMixin, image: ImageLike, prompt: str, answer: Sequence[int]
) -> ExitTrial:
    inputs = prompt_inputs(model, processor, image, prompt)
    start, count = inputs["input_ids"].shape[1], len(answer)
    whole = with_answer(inputs, answer)
    target = torch.tensor(answer)
    with torch.no_grad():
        stock = model(**whole, output_hidden_states=True, use_cache=False)
        logits = [stock.logits[0, -count - 1 : -1].float().cpu()]
        for layer in range(len(stock.hidden_states) - 2):
            with DyVTE(exit_layer=layer)(model):
                left = model(**whole, logits_to_keep=count + 1, use_cache=False).logits
            logits.append(left[0, :count].float().cpu())
    stacked = torch.stack(logits)
    found = stacked.argmax(dim=-1)
    losses = nn.functional.cross_entropy(
        stacked.transpose(1, 2), target.expand(len(stacked), -1), reduction="none"
    ).mean(dim=1)
    states = torch.cat([each[:, :start].cpu() for each in stock.hidden_states[1:-1]])
    shown = (inputs["input_ids"] == tokens.image_token(model.config)).cpu()
    after = PromptLayout.from_image_tokens(shown, None).after_last_image
    return ExitTrial(
        text_features(states, after.expand(len(states), -1)),
        (found[1:] == found[0]).float().mean(dim=1),
        losses[1:],
        losses[0],
    )
