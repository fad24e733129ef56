"""Answers to a batch of prompts about images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BatchFeature,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
)

from vlmfix.engine import leaving_rows, tokens
from vlmfix.engine.kept_readings import kept_readings
from vlmfix.engine.modules import input_device
from vlmfix.engine.prefix_cache import shared_prefix
from vlmfix.engine.shown_pictures import ShownPictures, interpolated_positions
from vlmfix.engine.vision_cache import cached_vision
from vlmfix.errors import UnsupportedError
from vlmfix.inference.conversation import Conversation, open_conversations
from vlmfix.inference.decoding import is_greedy
from vlmfix.inference.output import Answer, read_answers
from vlmfix.inference.rendering import model_inputs

Show = Callable[[Sequence[Image.Image]], ShownPictures]
"""From the pictures of a batch, each one once, to what is shown in their place."""
ChangeInputs = Callable[[BatchFeature], BatchFeature]
"""From what a processor made of a batch to what the model reads."""


class Prepared(NamedTuple):
    """What a model reads of a batch.

    Args:
        inputs: on the CPU.
        interpolates: whether its vision encoder has to interpolate its positions.
    """

    inputs: BatchFeature
    interpolates: bool


def prepare_batch(
    processor: ProcessorMixin, batch: Sequence[Conversation], show: Show | None = None
) -> Prepared:
    """Model inputs of a batch, without the model; see `answer_batch`."""
    opened = open_conversations(batch)
    if show is None:
        return Prepared(model_inputs(opened, processor), interpolates=False)
    return _changed_inputs(opened, processor, show)


def answer_batch(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: Sequence[Conversation],
    show: Show | None = None,
    change_inputs: ChangeInputs | None = None,
    prepared: Prepared | None = None,
    **generate_kwargs: Any,
) -> list[Answer]:
    """Answers of one forward pass a token, under whatever methods are attached.

    Prompts about the same images, as objects or paths, and the beams of a prompt share their vision encoding,
    and the reading of what stands before the question where the methods allow it.

    Args:
        batch: each prompt; its pictures may be paths.
        show: what is shown in the place of the pictures; None: these.
        change_inputs: changes what the model reads; None: nothing does.
        prepared: what `prepare_batch` made of all this; None: it is yet to be made.
        **generate_kwargs: for `model.generate`, `max_new_tokens` among them.

    Raises:
        ValueError: a prompt or picture cannot be read, or the model gives no numbers.
        UnsupportedError: an encoder-decoder model, or pictures that it or its processor does not take.
    """
    with asked(model, processor, batch, show, change_inputs, prepared, **generate_kwargs) as call:
        arguments = call.generate_kwargs
        if len(batch) > 1 and is_greedy(model, generate_kwargs):
            arguments["custom_generate"] = leaving_rows.decode
        generate: Any = model.generate  # of GenerationMixin, unknown to the type of the model
        output = generate(**call.inputs, **arguments)
    call.numbers.check()
    return read_answers(output, call.inputs["attention_mask"], call.end_tokens, processor)


class Asked(NamedTuple):
    """A call of `generate` that is about to be made.

    Args:
        inputs: of the model.
        generate_kwargs: further arguments.
        end_tokens: ids that end an answer; None: nothing does.
        numbers: watches the scores.
    """

    inputs: BatchFeature
    generate_kwargs: dict[str, Any]
    end_tokens: Tensor | None
    numbers: Numbers


@contextmanager
def asked(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: Sequence[Conversation],
    show: Show | None = None,
    change_inputs: ChangeInputs | None = None,
    prepared: Prepared | None = None,
    **generate_kwargs: Any,
) -> Iterator[Asked]:
    """The call of `generate` that answers a batch, to be made within the block; see `answer_batch`."""
    if model.config.is_encoder_decoder:
        raise UnsupportedError(
            f"{type(model).__name__} is an encoder-decoder model, whose answers do not follow their prompts; "
            "use a decoder-only model"
        )
    inputs, interpolates = prepared or prepare_batch(processor, batch, show)
    with ExitStack() as stack:
        if interpolates:
            stack.enter_context(interpolated_positions(model))
        if change_inputs is not None:
            inputs = change_inputs(inputs)
        check_token_ids(inputs["input_ids"], model)
        inputs = inputs.to(input_device(model), dtype=model.dtype)
        end_tokens = tokens.end_tokens(model, generate_kwargs)
        alike = len({each.identity for each in batch}) < len(batch)
        # Beams begin alike, and readings may be kept of and for other batches.
        if alike or generate_kwargs.get("num_beams", 1) > 1 or kept_readings(model) is not None:
            stack.enter_context(cached_vision(model))
            stack.enter_context(shared_prefix(model))
        numbers = Numbers()
        processors = LogitsProcessorList([*(generate_kwargs.pop("logits_processor", None) or ()), numbers])
        yield Asked(inputs, generate_kwargs | {"logits_processor": processors}, end_tokens, numbers)


def _changed_inputs(conversations: Sequence[Conversation], processor: ProcessorMixin, show: Show) -> Prepared:
    """Inputs with other pictures.

    Raises:
        UnsupportedError: a video, or a processor that makes another number of tokens than it should.
    """
    if any(each.videos for each in conversations):
        raise UnsupportedError("only pictures are changed, and a prompt shows a video; ask about its frames")
    given = list({id(image): image for each in conversations for image in each.pictures}.values())
    shown = show([image for image in given if isinstance(image, Image.Image)])  # which all are
    images = dict(zip(map(id, given), shown.images, strict=True))
    tokens = dict(zip(map(id, given), shown.tokens, strict=True))
    changed = [each.showing(lambda image: images[id(image)]) for each in conversations]
    inputs = model_inputs(changed, processor, shown.arguments)
    wanted = [sum(tokens[id(image)] for image in each.pictures) for each in conversations]
    own: Any = processor
    made = (inputs["input_ids"] == own.image_token_id).sum(dim=1).tolist()
    if made != wanted:
        raise UnsupportedError(
            f"{type(processor).__name__} makes {made} image tokens of the pictures that are shown instead, "
            f"and not {wanted}; they cannot be changed for it"
        )
    return Prepared(inputs, shown.interpolates)


class Numbers(LogitsProcessor):
    """Watches whether scores are numbers; what is not would be read as the first token of the vocabulary."""

    def __init__(self) -> None:
        self._broken: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._broken.append(scores.isnan().any())
        return scores

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some of the sequences."""

    def take_in(self, other: Numbers) -> None:
        """Go on with other sequences, too; whoever of the two is asked then knows of all."""
        self._broken += other._broken
        other._broken = self._broken

    def check(self) -> None:
        """Read the device, once a call.

        Raises:
            ValueError: some were not.
        """
        if self._broken and bool(torch.stack(self._broken).any()):
            raise ValueError(
                "the model gives scores that are not numbers (NaN), so that there is no answer; float16 "
                "overflows in models trained in bfloat16 (use bfloat16 or float32), or weights or settings "
                "of the checkpoint are broken"
            )


def check_token_ids(input_ids: Tensor, model: PreTrainedModel) -> None:
    """Refuse a prompt with tokens that the model has no embedding for, image tokens apart.

    Raises:
        ValueError: the tokenizer is another model's.
    """
    embeddings: Any = model.get_input_embeddings()
    size = embeddings.weight.shape[0]
    beyond = input_ids[(input_ids >= size) & (input_ids != getattr(model.config, "image_token_id", None))]
    if beyond.numel():
        raise ValueError(
            f"the tokenizer gives token {int(beyond[0])}, but the embedding of the model has {size} rows; "
            "use the tokenizer of this checkpoint, or resize_token_embeddings and train the new rows"
        )
