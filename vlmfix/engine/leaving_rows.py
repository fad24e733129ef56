"""Greedy decoding of a batch that sequences leave when they have ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from vlmfix.engine import kernels
from vlmfix.engine.buffered_cache import give_room, keep_rows, rows_that_stay
from vlmfix.engine.caches import read_cache
from vlmfix.engine.call import Call
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.method import MethodHooks
from vlmfix.models.structure import image_arguments, text_decoder

# Sequences leave when they are this share of the batch: what that costs is a part of a step.
_SHARE = 0.2
# The step after which the cache gets room: shorter answers end before that pays.
_LATER = 3


class Attached(Protocol):
    """What hangs on a model, as the loop sees it."""

    call: Call

    @property
    def context(self) -> DecodeContext | None:
        """The run in progress; None: there is none."""

    @property
    def methods(self) -> tuple[MethodHooks, ...]:
        """Those that act."""


@runtime_checkable
class KeepsRows(Protocol):
    """A logits processor that knows which sequences there are."""

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some of the sequences, `(sequences,)` int64."""


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
        self._attachment: Attached | None = vars(text_decoder(model)).get(kernels.ATTRIBUTE)
        self._leave = False

    def read(self) -> Any:
        """What the model makes of the prompts, and then of the newest tokens; without a cache, of all."""
        first = not self.columns
        newest = None if first or not self._kwargs["use_cache"] else 1
        inputs = self._model.prepare_inputs_for_generation(
            self.sequences, next_sequence_length=newest, is_first_iteration=first, **self._kwargs
        )
        if len(self.columns) == _LATER:
            of_images = image_arguments(self._model)  # which versions pass on, and no decode step reads
            others = {name: value for name, value in inputs.items() if name not in of_images}
            self._leave = _are_by_row(others, *self.sequences.shape)
        output = self._model(**inputs, return_dict=True)
        self._kwargs = self._model._update_model_kwargs_for_generation(
            output, self._kwargs, is_encoder_decoder=False
        )
        return output

    def take(self, tokens: Tensor, step: int) -> None:
        """Go on with these tokens, `(sequences,)`."""
        tokens = torch.where(self._alive, tokens, self._pad)
        column = self.sequences.new_full((len(self.columns[0]) if step else len(tokens),), self._pad)
        column[self._rows] = tokens
        self.columns.append(column)
        self.sequences = torch.cat([self.sequences, tokens[:, None]], dim=1)
        self._alive = self._alive & ~torch.isin(tokens, self._ends)

    def goes_on(self, step: int, processors: Iterable[Any]) -> bool:
        """Whether any sequence has not ended; many that have may leave. Reads the device."""
        alive = self._alive.cpu()
        count = int(alive.sum())
        if step == _LATER:
            self._give_room(processors)
        if self._leave and 0 < count <= (1 - _SHARE) * len(alive):
            self._keep(rows_that_stay(alive), processors)
        return count > 0

    def _give_room(self, processors: Iterable[Any]) -> None:
        """Give caches room, and learn whether sequences can leave."""
        can_leave = [give_room(read_cache(self._kwargs))]
        if self._attachment is not None:
            can_leave.append(_give_room_to_branches(self._attachment))
        self._leave &= all(can_leave) and all(isinstance(each, KeepsRows) for each in processors)

    def _keep(self, rows: Tensor, processors: Iterable[Any]) -> None:
        if self._attachment is not None and not _keep_in_run(self._attachment, rows):
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


def _give_room_to_branches(attachment: Attached) -> bool:
    """Give the caches of branches room; whether sequences may leave, of which no observer then misses any."""
    branches = [] if attachment.context is None else attachment.context.engine.branches
    roomy = [give_room(branch.cache) for branch in branches]
    return (
        all(roomy)
        and all(branch.comes_apart for branch in branches)
        and all(method.edits and not isinstance(method, ChoosesTokens) for method in attachment.methods)
    )


def _keep_in_run(attachment: Attached, rows: Tensor) -> bool:
    """Go on with the run of some of the sequences; whether all that methods keep allows it."""
    if attachment.context is None:
        return True
    try:
        kept = attachment.context.kept(rows)
    except ValueError:  # of what does not tell the sequences apart
        return False
    for branch in kept.engine.branches:
        if branch.cache is not None:
            keep_rows(branch.cache, rows)
    attachment.call.context = kept
    return True


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
