"""Greedy decoding of batch after batch, where what is left of one goes on with the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from vlmfix.engine.running_batch import Prompts, RunningBatch


class Stream:
    """Batches of prompts of one model: when half of the sequences have ended, the others wait for those of
    the next batch, and go on with them from the same step.

    Where two batches do not go together, as their prompts differ in length or what methods keep of them in
    form, the earlier one is decoded to its end by itself.

    Args:
        model: as it is while the stream is at work, with or without methods attached.
        size: most sequences that are decoded together.
        passes: how often the model was called up to now, for `Prompts.passes`.
    """

    def __init__(self, model: PreTrainedModel, size: int, passes: Callable[[], float] = lambda: 0.0) -> None:
        self._model: Any = model  # with GenerationMixin, unknown to its type
        self._half = size // 2
        self._passes = passes
        self._new: RunningBatch | None = None
        self._waiting: RunningBatch | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompts that wait, to which others have to be padded; 0: none waits."""
        return 0 if self._waiting is None else self._waiting.prompt_length

    def begin(self, **generate_kwargs: Any) -> Prompts:
        """Read prompts and write the first token of each answer; `advance` goes on with them.

        Args:
            **generate_kwargs: inputs and arguments of greedy decoding (`is_greedy`).
        """
        self._model.generate(**generate_kwargs, custom_generate=self._start)
        assert self._new is not None
        [(prompts, _)] = self._new.shares
        return prompts

    def _start(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        self._new = RunningBatch(model, input_ids, logits_processor, generation_config, model_kwargs)
        self._new.step()
        self._new.pause()
        return input_ids

    def advance(self) -> Iterator[Prompts]:
        """Go on until half of the sequences have ended; prompts come out when all their answers have."""
        new, old, self._new = self._new, self._waiting, None
        assert new is not None
        yield from self._run(new)
        if old is not None and new.goes_on:
            behind, ahead = sorted((old, new), key=lambda each: each.steps)
            yield from self._run(behind, ahead.steps)
            if not behind.goes_on:
                new = ahead
            elif ahead.take_in(behind):
                new = ahead
                yield from self._run(new)
            else:
                yield from self._run(old, old.limit)
        elif old is not None:
            new = old
        self._waiting = new if new.goes_on else None

    def finish(self) -> Iterator[Prompts]:
        """Go on to the end of all answers."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            yield from self._run(waiting, waiting.limit)

    def _run(self, batch: RunningBatch, steps: int | None = None) -> Iterator[Prompts]:
        """Go on to a step, or until half of `size` are left, where the batch can pause."""
        with batch.resumed():
            while batch.goes_on and not (
                batch.may_pause and (batch.left <= self._half if steps is None else batch.steps >= steps)
            ):
                self._step(batch)
            if batch.goes_on:
                batch.compact()
            while batch.goes_on and not batch.may_pause:  # it cannot leave out those that have ended
                self._step(batch)
            batch.pause()
        for prompts in batch.all_ended():
            batch.end(prompts)
            yield prompts

    def _step(self, batch: RunningBatch) -> None:
        shares, start, passes = batch.shares, time.perf_counter(), self._passes()
        batch.step()
        seconds, passes = time.perf_counter() - start, self._passes() - passes
        for prompts, share in shares:
            prompts.seconds += seconds * share
            prompts.passes += passes
