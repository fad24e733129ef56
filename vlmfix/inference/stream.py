"""Answers to batch after batch of prompts, where what is left of one goes on with the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from vlmfix.engine.entering_rows import Stream
from vlmfix.engine.running_batch import Prompts
from vlmfix.inference.batch import Prepared, Show, answer_batch, asked
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.decoding import is_greedy
from vlmfix.inference.output import Answer, read_answers


@dataclass(eq=False)
class Answering:
    """A batch whose answers are being written.

    Args:
        seconds: that writing took after `AnswerStream.begin`, by its share of the rows of the model.
        passes: of the model, of these seconds.
        answers: when all have been written.
    """

    seconds: float = 0.0
    passes: float = 0.0
    answers: Sequence[Answer] = ()


class AnswerStream:
    """Batches of prompts under whatever methods are attached, answered with what is left of those before.

    Answers are those of `answer_batch`. Decoding that is not greedy, and batches of one prompt, are answered
    one after the other.

    Args:
        model: as for `answer_batch`; the methods that are attached stay.
        processor: of the model.
        size: most prompts that are answered together.
        passes: how often the model was called up to now.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, size: int, passes: Callable[[], float]
    ) -> None:
        self._model = model
        self._processor = processor
        self._stream = Stream(model, size, passes)
        self._reading: dict[Prompts, tuple[Answering, Callable[[Tensor], list[Answer]]]] = {}
        self._answered: list[Answering] = []
        self._begun = False

    def begin(
        self,
        batch: Sequence[Conversation],
        show: Show | None = None,
        prepared: Prepared | None = None,
        **generate_kwargs: Any,
    ) -> Answering:
        """Read prompts and write the first token of each answer; see `answer_batch`.

        Raises:
            ValueError: as for `answer_batch`.
            UnsupportedError: as for `answer_batch`.
        """
        if len(batch) == 1 or not is_greedy(self._model, generate_kwargs):
            return self.give(
                answer_batch(self._model, self._processor, batch, show, prepared=prepared, **generate_kwargs)
            )
        with asked(self._model, self._processor, batch, show, prepared=prepared, **generate_kwargs) as call:
            inputs = _padded(call.inputs, self._stream.length, self._processor)
            prompts = self._stream.begin(**inputs, **call.generate_kwargs)
        mask, numbers, ends = inputs["attention_mask"], call.numbers, call.end_tokens

        def read(output: Tensor) -> list[Answer]:  # without the pixels of the call
            numbers.check()
            return read_answers(output, mask, ends, self._processor)

        found = Answering()
        self._reading[prompts] = found, read
        self._begun = True
        return found

    def give(self, answers: Sequence[Answer]) -> Answering:
        """Let answers that are there already come out by the next `advance`."""
        found = Answering(answers=answers)
        self._answered.append(found)
        return found

    def advance(self) -> Iterator[Answering]:
        """Go on after `begin` until many answers have ended; batches come out when all theirs have, and what
        methods did in one is to be had until the next one is asked for."""
        answered, self._answered = self._answered, []
        yield from answered
        if self._begun:
            self._begun = False
            yield from self._read(self._stream.advance())

    def finish(self) -> Iterator[Answering]:
        """Go on to the end of all answers."""
        yield from self._read(self._stream.finish())

    def _read(self, ended: Iterable[Prompts]) -> Iterator[Answering]:
        for prompts in ended:
            found, read = self._reading.pop(prompts)
            found.answers = read(prompts.output(prompts.answers.shape[1]))
            found.seconds, found.passes = prompts.seconds, prompts.passes
            yield found


def _padded(inputs: BatchFeature, length: int, processor: ProcessorMixin) -> BatchFeature:
    """Inputs with prompts of at least a length, padded on the left."""
    shape = inputs["input_ids"].shape
    tokenizer: Any = processor.tokenizer
    pad = {"input_ids": tokenizer.pad_token_id}
    missing = max(0, length - shape[1])
    return BatchFeature(
        {
            name: nn.functional.pad(value, (missing, 0), value=pad.get(name, 0))
            if missing and isinstance(value, Tensor) and value.shape == shape
            else value
            for name, value in inputs.items()
        }
    )
