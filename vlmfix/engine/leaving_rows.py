"""Greedy decoding of a batch that sequences leave when they have ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from vlmfix.engine import kernels
from vlmfix.engine.buffered_cache import give_room, keep_rows, rows_that_stay
from vlmfix.engine.caches import read_cache
from vlmfix.models.structure import text_decoder

# Sequences leave when they are this share of the batch: what that costs is a part of a step.
_SHARE = 0.2
# Steps after which a device other than the CPU is asked how many have ended, which waits for it.
_STEPS = 8
# Arguments of `generate` that change nothing about how the next token is chosen.
_OF_GREEDY = {"eos_token_id", "logits_processor", "max_new_tokens", "pad_token_id"}


@runtime_checkable
class KeepsRows(Protocol):
    """A logits processor that knows which sequences there are."""

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some of the sequences, `(sequences,)` int64."""


def decodes_greedily(model: PreTrainedModel, generate_kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of `generate` takes the likeliest token in each step, and does nothing else.

    Args:
        model: with the `generate` of transformers, or another one.
        generate_kwargs: without the inputs.
    """
    kind: Any = type(model)
    if getattr(kind, "generate", None) is not GenerationMixin.generate:
        return False
    return all(
        name in _OF_GREEDY or value is None or _is_without_effect(name, value)
        for name, value in generate_kwargs.items()
    )


def _is_without_effect(name: str, value: Any) -> bool:
    default = {"do_sample": False, "use_cache": True, "early_stopping": False, "num_beams": 1}.get(name)
    return value is default if isinstance(default, bool) else default is not None and value == default


def decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Tensor:
    """The loop, for `generate(custom_generate=...)`, which calls it: the tokens are those of the loop of
    transformers.

    Sequences that have ended stay in the batch where the cache is no plain one, where a method watches or a
    branch chooses by what is known of all, and where a logits processor does not say that it can go on.

    Args:
        model: with or without methods attached.
        input_ids: of the prompts, `(batch, prompt)`.
        logits_processor: what says the scores.
        stopping_criteria: of length and end tokens, which `generation_config` has, too.
        generation_config: of the call.
        **model_kwargs: what else `generate` prepared.

    Returns:
        Prompts and answers, `(batch, tokens)`, padded on the right.
    """
    batch = _Batch(model, input_ids, model_kwargs, generation_config)
    limit = generation_config.max_length - input_ids.shape[1]
    processors: Any = logits_processor  # typed as if it took token ids of one type alone
    for step in range(limit):
        output = batch.read()
        logits = output.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        if step == 0:
            batch.begin(output, logits_processor)
        del output  # which holds the logits of whole prompts
        batch.take(processors(batch.sequences, logits).argmax(dim=-1), step)
        if step + 1 < limit and not batch.goes_on(step, logits_processor):
            break
    return torch.cat([input_ids, torch.stack(batch.columns, dim=1)], dim=1)


class _Batch:
    """The sequences that are being decoded, of those that there were."""

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        config: GenerationConfig,
    ) -> None:
        self.sequences = input_ids
        """Prompts and tokens of those that are in it, `(sequences, tokens)`."""
        self.columns: list[Tensor] = []
        """Tokens of each step of all that there were, `(batch,)` each."""
        self._model: Any = model  # with GenerationMixin, unknown to its type
        self._kwargs = model_kwargs
        self._rows = torch.arange(len(input_ids), device=input_ids.device)
        self._alive = torch.ones_like(self._rows, dtype=torch.bool)
        ends = config.eos_token_id
        self._ends = input_ids.new_tensor([] if ends is None else [ends] if isinstance(ends, int) else ends)
        pad = config.pad_token_id
        self._pad = pad if pad is not None else int(self._ends[0]) if len(self._ends) else 0
        self._attachment = vars(text_decoder(model)).get(kernels.ATTRIBUTE)
        self._leave = False

    def read(self) -> Any:
        """What the model makes of the prompts, and then of the newest tokens."""
        first = not self.columns
        length = {} if first else {"next_sequence_length": 1}
        inputs = self._model.prepare_inputs_for_generation(
            self.sequences, **length, is_first_iteration=first, **self._kwargs
        )
        if len(self.columns) == 1 and self._leave:
            self._leave = _are_by_row(inputs, *self.sequences.shape)
        output = self._model(**inputs, return_dict=True)
        self._kwargs = self._model._update_model_kwargs_for_generation(
            output, self._kwargs, is_encoder_decoder=False
        )
        return output

    def begin(self, output: Any, processors: Iterable[Any]) -> None:
        """Learn whether sequences can leave, when the prompts have been read."""
        self._leave = give_room(read_cache(output)) and all(
            isinstance(each, KeepsRows) for each in processors
        )
        if self._attachment is not None:
            self._leave = self._attachment.give_room() and self._leave

    def take(self, tokens: Tensor, step: int) -> None:
        """Go on with these tokens, `(sequences,)`."""
        tokens = torch.where(self._alive, tokens, self._pad)
        column = self.sequences.new_full((len(self.columns[0]) if step else len(tokens),), self._pad)
        column[self._rows] = tokens
        self.columns.append(column)
        self.sequences = torch.cat([self.sequences, tokens[:, None]], dim=1)
        self._alive = self._alive & ~torch.isin(tokens, self._ends)

    def goes_on(self, step: int, processors: Iterable[Any]) -> bool:
        """Whether any sequence has not ended; many that have may leave."""
        if self._alive.device.type != "cpu" and step % _STEPS:
            return True
        alive = self._alive.cpu()
        count = int(alive.sum())
        if step and self._leave and 0 < count <= (1 - _SHARE) * len(alive):
            self._keep(rows_that_stay(alive), processors)
        return count > 0

    def _keep(self, rows: Tensor, processors: Iterable[Any]) -> None:
        if self._attachment is not None and not self._attachment.keep_rows(rows):
            self._leave = False
            return
        keep_rows(read_cache(self._kwargs), rows)
        for each in processors:
            each.keep_rows(rows)
        shape = self.sequences.shape
        self._kwargs = {
            name: value[..., rows, :] if _is_by_token(value, *shape) else value
            for name, value in self._kwargs.items()
        }
        self.sequences, self._rows, self._alive = (
            each[rows] for each in (self.sequences, self._rows, self._alive)
        )


def _is_by_token(value: Any, batch: int, tokens: int) -> bool:
    """Whether an argument has a value for each token of each sequence, in its last two dimensions."""
    return isinstance(value, Tensor) and value.shape[-2:] == (batch, tokens)


def _are_by_row(inputs: Mapping[str, Any], batch: int, tokens: int) -> bool:
    """Whether all arguments of a decode step are known to come apart into sequences; without positions the
    model would count them by itself."""
    return "position_ids" in inputs and all(
        not isinstance(value, Tensor)
        or batch not in value.shape
        or _is_by_token(value, batch, 1)
        or _is_by_token(value, batch, tokens)
        for value in inputs.values()
    )
