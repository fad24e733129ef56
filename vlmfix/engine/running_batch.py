"""A batch that is being decoded, which sequences leave when they have ended, and which others may join."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
)

from vlmfix.engine import kernels
from vlmfix.engine.buffered_cache import can_join, give_room, join, keep_rows, rows_that_stay
from vlmfix.engine.caches import read_cache
from vlmfix.engine.call import Call
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.rows_of_runs import kept, settle, together
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

    def end_sequences(self, run: DecodeContext) -> None:
        """Tell the methods that all sequences of a run have ended."""

    def park(self) -> Call:
        """Take the call in progress off the model."""

    def resumed(self, call: Call) -> AbstractContextManager[None]:
        """Within the block, passes are those of a call that was parked."""


@runtime_checkable
class KeepsRows(Protocol):
    """A logits processor that knows which sequences there are."""

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some of the sequences, `(sequences,)` int64."""


@runtime_checkable
class TakesIn(KeepsRows, Protocol):
    """A logits processor that can go on with the sequences of another one."""

    def take_in(self, other: Any) -> None:
        """Go on with the sequences of another one of its kind, too, after these."""


@dataclass(eq=False)
class Prompts:
    """Prompts that were read together, and their answers.

    Args:
        input_ids: `(batch, prompt)`.
        answers: new tokens, `(batch, most of them)`, padded on the right.
        left: how many are being answered.
        run: of the methods; None: none is attached.
        seconds: that writing took after the first token, in a batch with others by their share of its rows.
        passes: of the model, of these tokens.
    """

    input_ids: Tensor
    answers: Tensor
    left: int
    run: DecodeContext | None = None
    seconds: float = 0.0
    passes: float = 0.0

    def output(self, steps: int) -> Tensor:
        """Prompts and so many tokens of the answers, as `generate` returns them."""
        return torch.cat([self.input_ids, self.answers[:, :steps]], dim=1)


@dataclass(eq=False)
class _Place:
    """Which sequences of a running batch are of the same prompts.

    Args:
        prompts: which.
        rows: their numbers there, `(sequences,)`.
        places: where they stand in the running batch, `(sequences,)`.
    """

    prompts: Prompts
    rows: Tensor
    places: Tensor


class RunningBatch:
    """The sequences that are being decoded, of those that there were.

    Args:
        model: with or without methods attached.
        input_ids: of the prompts, `(batch, prompt)`.
        processors: what says the scores.
        config: of the call.
        model_kwargs: what `generate` prepared.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> None:
        self.steps = 0
        self.limit = config.max_length - input_ids.shape[1]
        self._model: Any = model  # with GenerationMixin, unknown to its type
        self._sequences = input_ids
        self._processors: Any = processors  # typed as if it took token ids of one type alone
        self._kwargs = model_kwargs
        self._alive = torch.ones_like(input_ids[:, 0], dtype=torch.bool)
        ends = config.eos_token_id
        self._ends = input_ids.new_tensor([] if ends is None else [ends] if isinstance(ends, int) else ends)
        pad = config.pad_token_id
        self._pad = pad if pad is not None else int(self._ends[0]) if len(self._ends) else 0
        self._attachment: Attached | None = vars(text_decoder(model)).get(kernels.ATTRIBUTE)
        self._leave = False
        self._call: Call | None = None
        rows = torch.arange(len(input_ids))
        answers = input_ids.new_full((len(input_ids), self.limit), self._pad)
        self._places = [_Place(Prompts(input_ids, answers, len(input_ids)), rows, rows)]
        self._ended: list[Prompts] = []
        self.left = len(input_ids)
        """Sequences that have not ended."""

    @property
    def goes_on(self) -> bool:
        """Whether there are tokens to come."""
        return self.left > 0 and self.steps < self.limit

    @property
    def may_pause(self) -> bool:
        """Whether sequences can leave, and others join."""
        return self._leave and self.steps > _LATER

    @property
    def shares(self) -> list[tuple[Prompts, float]]:
        """The prompts whose sequences are in it, with the part of its rows that they have."""
        return [(each.prompts, len(each.places) / len(self._sequences)) for each in self._places]

    def step(self) -> None:
        """Write one token of each sequence. Reads the device."""
        logits = self._read().logits[:, -1]
        logits = logits.to(copy=True, dtype=torch.float32, device=self._sequences.device)
        tokens = torch.where(self._alive, self._processors(self._sequences, logits).argmax(dim=-1), self._pad)
        self._sequences = torch.cat([self._sequences, tokens[:, None]], dim=1)
        self._alive = self._alive & ~torch.isin(tokens, self._ends)
        if self.steps == 0 and self._attachment is not None:
            self._places[0].prompts.run = self._attachment.context
        self.steps += 1
        if self.steps == self.limit:  # whether any has ended changes nothing
            return
        self.left = int(self._alive.sum())
        if self.steps == _LATER + 1 and self.left:
            self._give_room()
        if self._leave and 0 < self.left <= (1 - _SHARE) * len(self._sequences):
            self.compact()

    def compact(self) -> None:
        """Let the sequences that have ended leave; where that cannot be, none will."""
        rows = rows_that_stay(self._alive.cpu())
        if self._attachment is not None and not self._keep_in_run(self._attachment, rows):
            self._leave = False
            return
        keep_rows(read_cache(self._kwargs), rows)
        for each in self._processors:
            each.keep_rows(rows)
        shape = self._sequences.shape
        self._kwargs = {
            name: value[..., rows, :] if _is_by_token(value, *shape) else value
            for name, value in self._kwargs.items()
        }
        self._places = [part for each in self._places if (part := self._left_of(each, rows)) is not None]
        self._sequences, self._alive = self._sequences[rows], self._alive[rows]

    def pause(self) -> None:
        """Take the call off the model, which may serve others; `resumed` goes on with it."""
        if self._attachment is not None:
            self._call = self._attachment.park()

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Within the block, it may write tokens."""
        with torch.no_grad():
            if self._attachment is None:
                yield
                return
            assert self._call is not None
            with self._attachment.resumed(self._call):
                yield

    def take_in(self, other: RunningBatch) -> bool:
        """Go on with the sequences of another batch, too, where both are paused at the same step, and no
        sequence that has ended is in them; False: they do not go together, and nothing was changed."""
        forms = [
            (each.steps, each.limit, each._pad, each._ends.tolist(), [type(one) for one in each._processors])
            for each in (self, other)
        ]
        kwargs = _joined_kwargs(self, other)
        if forms[0] != forms[1] or kwargs is None:
            return False
        if not all(isinstance(each, TakesIn) for each in (*self._processors, *other._processors)):
            return False
        pairs = [(read_cache(self._kwargs), read_cache(other._kwargs))]
        run = None
        if self._call is not None and other._call is not None:
            one, two = self._call.context, other._call.context
            assert one is not None
            assert two is not None
            branches = zip(one.engine.branches, two.engine.branches, strict=False)
            pairs += [(mine.cache, theirs.cache) for mine, theirs in branches]
            try:
                run = together(one, two)
            except ValueError:  # of what methods keep in another shape
                return False
        if not all(can_join(*pair) for pair in pairs):
            return False
        for pair in pairs:
            join(*pair)
        for mine, theirs in zip(self._processors, other._processors, strict=True):
            mine.take_in(theirs)
        if run is not None and self._call is not None:
            self._call.context = run
        before = len(self._sequences)
        self._places += [_Place(each.prompts, each.rows, each.places + before) for each in other._places]
        self._kwargs = kwargs
        self._sequences = torch.cat([self._sequences, other._sequences])
        self._alive = torch.cat([self._alive, other._alive])
        self.left += other.left
        return True

    def all_ended(self) -> list[Prompts]:
        """Prompts of which all answers have ended since it was asked, or all if none goes on."""
        if not self.goes_on:
            self._places = [each for each in self._places if self._left_of(each, _NONE) is not None]
            if self._call is not None and self._call.context is not None:
                settle(self._call.context)
        ended, self._ended = self._ended, []
        return ended

    def end(self, prompts: Prompts) -> None:
        """Tell the methods that prompts have ended, where no call of `generate` does."""
        if self._attachment is not None and prompts.run is not None:
            self._attachment.end_sequences(prompts.run)

    @property
    def prompt_length(self) -> int:
        """Tokens of each prompt, with padding."""
        return self._sequences.shape[1] - self.steps

    def _read(self) -> Any:
        """What the model makes of the prompts, and then of the newest tokens; without a cache, of all."""
        newest = None if not self.steps or not self._kwargs["use_cache"] else 1
        inputs = self._model.prepare_inputs_for_generation(
            self._sequences,
            next_sequence_length=newest,
            is_first_iteration=not self.steps,
            **self._kwargs,
        )
        if self.steps == _LATER:
            of_images = image_arguments(self._model)  # which versions pass on, and no decode step reads
            others = {name: value for name, value in inputs.items() if name not in of_images}
            self._leave = _are_by_row(others, *self._sequences.shape)
        output = self._model(**inputs, return_dict=True)
        self._kwargs = self._model._update_model_kwargs_for_generation(
            output, self._kwargs, is_encoder_decoder=False
        )
        return output

    def _give_room(self) -> None:
        """Give caches room, and learn whether sequences can leave."""
        can_leave = [give_room(read_cache(self._kwargs))]
        if self._attachment is not None:
            can_leave.append(_give_room_to_branches(self._attachment))
        self._leave &= all(can_leave) and all(isinstance(each, KeepsRows) for each in self._processors)

    def _keep_in_run(self, attachment: Attached, rows: Tensor) -> bool:
        """Go on with the run of some of the sequences; whether all that methods keep allows it."""
        if attachment.context is None:
            return True
        try:
            run = kept(attachment.context, rows)
        except ValueError:  # of what does not tell the sequences apart
            return False
        for branch in run.engine.branches:
            if branch.cache is not None:
                keep_rows(branch.cache, rows)
        attachment.call.context = run
        return True

    def _left_of(self, place: _Place, rows: Tensor) -> _Place | None:
        """Where the sequences of some prompts stand when these rows stay; the others are written down. None:
        no sequence is left."""
        stays = torch.isin(place.places, rows)
        gone, prompts = place.places[~stays], place.prompts
        prompts.answers[place.rows[~stays], : self.steps] = self._sequences[gone, -self.steps :]
        prompts.left -= len(gone)
        if not prompts.left:
            self._ended.append(prompts)
            return None
        order = torch.argsort(rows)
        places = order[torch.searchsorted(rows, place.places[stays], sorter=order)]
        return _Place(prompts, place.rows[stays], places)


_NONE = torch.empty(0, dtype=torch.int64)


def _joined_kwargs(first: RunningBatch, second: RunningBatch) -> dict[str, Any] | None:
    """Arguments of the model for the sequences of two batches; None: they do not go together."""
    shapes = first._sequences.shape, second._sequences.shape
    if first._kwargs.keys() != second._kwargs.keys() or shapes[0][1] != shapes[1][1]:
        return None
    found = {}
    for name, value in first._kwargs.items():
        pair = [value, second._kwargs[name]]
        if name == "attention_mask" and any(isinstance(each, Tensor) for each in pair):
            ones = (first._sequences.new_ones(shape) for shape in shapes)  # there is none without padding
            pair = [one if each is None else each for each, one in zip(pair, ones, strict=True)]
        by_token = [_is_by_token(each, *shape) for each, shape in zip(pair, shapes, strict=True)]
        if by_token[0] != by_token[1]:
            return None
        found[name] = torch.cat(pair, dim=-2) if by_token[0] else value
    return found


def _give_room_to_branches(attachment: Attached) -> bool:
    """Give the caches of branches room; whether sequences may leave, of which no observer then misses any."""
    branches = [] if attachment.context is None else attachment.context.engine.branches
    roomy = [give_room(branch.cache) for branch in branches]
    return (
        all(roomy)
        and all(branch.comes_apart for branch in branches)
        and all(method.edits and not isinstance(method, ChoosesTokens) for method in attachment.methods)
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
