"""Steps of a batch, in which each answer has its own length, stop texts and client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria

from vlmfix.engine.attach import end_sequences, sequence_stats
from vlmfix.engine.stats import summed
from vlmfix.serve.job import FinishReason, Row
from vlmfix.serve.writing import Likely, Scored

_LEAST = -9999.0


class Probabilities(LogitsProcessor):
    """Keeps what is to be told of a step: probabilities, and whether the scores are numbers.

    It stands before sampling, so that the probabilities are those of the model under its methods.

    Args:
        rows: of the batch.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        wanted = [row.job.decoding.top_logprobs for row in rows]
        self._rows = [number for number, each in enumerate(wanted) if each is not None]
        self._counts = [each for each in wanted if each is not None]
        self._logprobs: Tensor | None = None
        self.broken: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores as they were, `(batch, vocabulary)`."""
        self.broken = scores.isnan().any(dim=1)
        if self._rows:
            self._logprobs = scores[self._rows].float().log_softmax(dim=-1)
        return scores

    def of(self, tokens: Tensor) -> dict[int, Scored]:
        """The probabilities of the step, by row.

        Args:
            tokens: that were chosen, `(batch,)`.
        """
        if self._logprobs is None:
            return {}
        chosen = self._logprobs.gather(1, tokens[self._rows, None].to(self._logprobs.device))[:, 0]
        values, ids = self._logprobs.topk(min(max(1, *self._counts), self._logprobs.shape[1]), dim=1)
        found = {}
        for place, (row, count) in enumerate(zip(self._rows, self._counts, strict=True)):
            likeliest = [
                Likely(token, max(_LEAST, value))
                for token, value in zip(ids[place].tolist(), values[place].tolist(), strict=True)
            ]
            own = Likely(int(tokens[row]), max(_LEAST, float(chosen[place])))
            found[row] = Scored(own, tuple(likeliest[:count]))
        return found


class Steps(StoppingCriteria):
    """Hands over every token as it is chosen, and ends each answer by itself.

    Args:
        rows: of the batch.
        model: that writes.
        end_tokens: ids that end an answer.
        probabilities: of the same batch.
        passes: how many forward passes there were so far.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        model: PreTrainedModel,
        end_tokens: Sequence[int],
        probabilities: Probabilities,
        passes: Callable[[], float],
    ) -> None:
        self._rows = rows
        self._model = model
        self._ends = frozenset(end_tokens)
        self._probabilities = probabilities
        self._passes = passes
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which answers have ended, `(batch,)` bool.

        Raises:
            ValueError: the model gives scores that are not numbers.
        """
        self._step += 1
        newest = input_ids[:, -1]
        scored = self._probabilities.of(newest)
        broken = self._probabilities.broken
        assert broken is not None
        tokens, faults = torch.stack([newest, broken.to(newest)]).tolist()
        finished: list[tuple[int, FinishReason]] = []
        for number, row in enumerate(self._rows):
            if row.is_done:
                continue
            if row.job.cancelled:
                row.is_done = True
                continue
            if faults[number]:
                raise ValueError(
                    "the model gives scores that are not numbers (NaN), so that there is no answer"
                )
            token = tokens[number]
            reason = row.add(token, scored.get(number), ends=token in self._ends)
            if reason is not None:
                finished.append((number, reason))
        if finished:
            self._finish(finished)
        done = torch.tensor([row.is_done for row in self._rows], device=input_ids.device)
        end_sequences(self._model, done)
        return done

    def _finish(self, finished: Sequence[tuple[int, FinishReason]]) -> None:
        stats = sequence_stats(self._model)
        for number, reason in finished:
            activity = {name: summed([rows[number]]) for name, rows in stats.items()}
            self._rows[number].finish(reason, activity, self._passes() / self._step, len(self._rows))
