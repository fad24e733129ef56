"""What a method did: sites that it could have edited, and those that it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmfix.engine.kl import Divergence, DivergenceCounts


class InactiveMethodWarning(UserWarning):
    """A method never acted in a whole run; the message says how often it could have, and why."""


@dataclass(frozen=True, kw_only=True)
class EditStats:
    """What a method did in all runs since it was made or reset; shares lie in [0, 1], None does not apply.

    A *site* is the smallest thing that a method may leave alone: a (step, layer, head) triple for methods at
    the attention level, a step at the logits level, an image token for pruning, a sequence for methods of
    several passes. KL(edited || base), in nats, is between the distributions of the next token with and
    without the edit after the same prefix, before temperature and the like; it is known for methods that say
    what the logits are.

    Args:
        rows: sequences seen (samples times beams).
        rows_touched: those with at least one edited site.
        rows_skipped: those that the method declined, by reason.
        steps: forward passes of sequences that had not ended, summed over sequences; the prefill is one.
        steps_edited: those with at least one edited site.
        layers_edited: layers with at least one edited site.
        head_share: edited (step, layer, head) triples among the eligible ones.
        site_share: edited sites among the eligible ones.
        size: mean size of the edit, in the unit that `details` names.
        prefill_only: whether no step after the prefill was edited.
        argmax_changed: share of the steps of `kl_steps` in which the likeliest token became another one.
        kl_mean: mean KL(edited || base) over these steps.
        kl_max: the largest one.
        kl_cut: the part of `kl_mean` that ruling tokens out alone gives; None if none was.
        kl_steps: steps of sequences that had not ended and that the method takes.
        details: facts of this method, for instance the schedule of a pruning, and means beside `size`.
    """

    rows: int
    rows_touched: int
    rows_skipped: dict[str, int]
    steps: int
    steps_edited: int
    layers_edited: list[int]
    head_share: float | None
    site_share: float | None
    size: float | None
    prefill_only: bool | None
    argmax_changed: float | None
    kl_mean: float | None
    kl_max: float | None
    kl_cut: float | None
    kl_steps: int | None
    details: dict[str, Any]


class SequenceStats(NamedTuple):
    """What a method did in one sequence of a run; see `EditStats`.

    Args:
        steps: forward passes until the sequence ended.
        steps_edited: those with at least one edited site.
        edited: sites.
        eligible: sites that could have been edited.
        skipped: why the method declined the sequence; "" if it did not.
        divergence: how far its edits moved the next token.
    """

    steps: int
    steps_edited: int
    edited: int
    eligible: int
    skipped: str
    divergence: Divergence = Divergence()


def summed(sequences: Sequence[SequenceStats]) -> dict[str, Any]:
    """What a method did in the sequences of one sample, its beams, as sums that can be added up."""
    sums: dict[str, Any] = {
        name: sum(getattr(each, name) for each in sequences)
        for name in ("steps", "steps_edited", "edited", "eligible")
    }
    moved = reduce(Divergence.merged, (each.divergence for each in sequences))
    if moved.kl_steps:
        sums |= moved._asdict()
    return sums | {"skipped": sequences[0].skipped}


class Counts:
    """Counters of one method in one run, on the device, one a sequence; read once at the end.

    Args:
        rows: number of sequences.
        layers: number of decoder layers.
    """

    def __init__(self, rows: int, layers: int, device: torch.device) -> None:
        # The last column is of what no layer does.
        self._edited = torch.zeros(rows, layers + 1, dtype=torch.int64, device=device)
        self._edited_now: list[tuple[int, Tensor]] = []
        self._eligible = torch.zeros(rows, dtype=torch.int64, device=device)
        self._eligible_now: int | Tensor = 0
        self._steps_edited = torch.zeros_like(self._eligible)
        self._steps = torch.zeros_like(self._eligible)
        self._edited_in_decode = torch.zeros((), dtype=torch.bool, device=device)
        self._sizes: dict[str, tuple[Tensor, Tensor]] = {}
        self._sizes_now: dict[str, list[Tensor]] = {}
        self.divergence = DivergenceCounts(rows, device)

    def add(self, layer: int | None, edited: Tensor, eligible: int | Tensor) -> None:
        """Sites of one layer in the current step.

        Args:
            layer: None for what no layer does.
            edited: how many were edited, `(rows,)`, or where, `(rows, sites, ...)` bool; a site counts once.
            eligible: how many could have been, `(rows,)` or one for all.
        """
        self._edited_now.append((self._edited.shape[1] - 1 if layer is None else layer, edited))
        self._eligible_now += eligible

    def measure(self, sizes: Mapping[str, Tensor]) -> None:
        """Sizes of edits in one layer of the current step, by name, `(rows, sites)` each."""
        for name, values in sizes.items():
            self._sizes_now.setdefault(name, []).append(values)

    def end_step(self, alive: Tensor, taken: Tensor, *, is_prefill: bool) -> None:
        """Sum up a step over the sequences that are alive and, for sites, that the method does not skip."""
        alive = alive.to(self._edited.device)
        counted = alive & taken.to(self._edited.device)
        edited = self._sum_up() * counted[:, None]
        self._edited += edited
        self._eligible += counted * self._eligible_now
        self._steps += alive
        touched = edited.any(dim=1)
        self._steps_edited += touched
        if not is_prefill:
            self._edited_in_decode |= touched.any()
        for name, values in self._sizes_now.items():
            of_step = torch.cat([each.to(counted.device) for each in values], dim=1).detach()
            total, count = self._sizes.get(name, (0, 0))
            self._sizes[name] = (
                total + (of_step.sum(dim=1) * counted).sum(),
                count + of_step.shape[1] * counted.sum(),
            )
        self.divergence.end_step(counted)
        self._edited_now, self._sizes_now = [], {}
        self._eligible_now = 0

    def part(self, rows: slice) -> Counts:
        """Counters of some sequences, which count here."""
        part = copy(self)
        part._edited, part._eligible = self._edited[rows], self._eligible[rows]
        part._steps, part._steps_edited = self._steps[rows], self._steps_edited[rows]
        part._edited_now, part._sizes_now = [], {}
        return part

    def add_part(self, part: Counts, rows: Tensor, places: Tensor, *, with_sizes: bool = True) -> None:
        """Add counters of some sequences that counted by themselves.

        Args:
            rows: which sequences these are here, `(sequences,)` int64.
            places: where they stand in the part, `(sequences,)` int64.
            with_sizes: whether the sizes of edits are taken, too, which the part does not have by sequence.
        """
        rows, places = (each.to(self._edited.device) for each in (rows, places))
        for name in ("_edited", "_eligible", "_steps", "_steps_edited"):
            getattr(self, name).index_add_(0, rows, getattr(part, name)[places])
        self._edited_in_decode |= part._edited_in_decode
        for name, (total, count) in part._sizes.items() if with_sizes else ():
            before = self._sizes.get(name, (0, 0))
            self._sizes[name] = (before[0] + total, before[1] + count)
        self.divergence.add_part(part.divergence, rows, places)

    def _sum_up(self) -> Tensor:
        """What was edited in this step, `(rows, layers)`; layers of one shape are summed up together."""
        total = torch.zeros_like(self._edited)
        by_shape: dict[tuple[Any, ...], list[tuple[int, Tensor]]] = {}
        for layer, edited in self._edited_now:
            by_shape.setdefault((edited.dtype, edited.shape), []).append((layer, edited))
        for group in by_shape.values():
            layers = torch.tensor([layer for layer, _ in group], device=total.device)
            edited = torch.stack([each.to(total.device) for _, each in group], dim=1)
            if edited.dtype == torch.bool:
                edited = edited.flatten(3).any(dim=3).sum(dim=2)
            total.index_add_(1, layers, edited)
        return total

    def close(self, skipped: dict[str, Tensor]) -> Sums:
        """The sums of the run as plain numbers."""
        edited = self._edited.cpu()
        reasons = [""] * len(edited)
        for reason, rows in skipped.items():
            for row in rows.nonzero().flatten().tolist():
                reasons[row] = reasons[row] or reason
        counts = (self._steps, self._steps_edited, edited.sum(dim=1), self._eligible)
        columns = (*(each.tolist() for each in counts), reasons, self.divergence.close())
        latest = [SequenceStats(*row) for row in zip(*columns, strict=True)]
        sizes = {name: (float(total), int(count)) for name, (total, count) in self._sizes.items()}
        size, size_count = sizes.pop("size", (0.0, 0))
        return Sums(
            latest=latest,
            rows=len(edited),
            rows_touched=int(edited.any(dim=1).sum()),
            rows_skipped=Counter({reason: n for reason, rows in skipped.items() if (n := int(rows.sum()))}),
            steps=int(self._steps.sum()),
            steps_edited=int(self._steps_edited.sum()),
            layers=set(edited[:, :-1].any(dim=0).nonzero().squeeze(1).tolist()),
            edited=int(edited.sum()),
            eligible=int(self._eligible.sum()),
            edited_in_decode=bool(self._edited_in_decode),
            size=size,
            size_count=size_count,
            other_sizes=sizes,
            divergence=reduce(Divergence.merged, (row.divergence for row in latest), Divergence()),
        )


@dataclass(kw_only=True)
class Sums:
    """Sums over runs; adding two merges batches, runs or workers."""

    rows: int = 0
    rows_touched: int = 0
    rows_skipped: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    steps_edited: int = 0
    layers: set[int] = field(default_factory=set)
    edited: int = 0
    eligible: int = 0
    edited_in_decode: bool = False
    size: float = 0.0
    size_count: int = 0
    other_sizes: dict[str, tuple[float, int]] = field(default_factory=dict)
    divergence: Divergence = field(default_factory=Divergence)
    warned: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    latest: list[SequenceStats] = field(default_factory=list)

    @property
    def did_nothing(self) -> bool:
        """Whether nothing was edited, or no edit moved a distribution."""
        return self.edited == 0 or self.divergence.is_still

    def add(self, other: Sums) -> None:
        """Merge `other` into these; of details and single sequences, the later ones hold."""
        for name in (
            "rows",
            "rows_touched",
            "steps",
            "steps_edited",
            "edited",
            "eligible",
            "size",
            "size_count",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, sums in other.other_sizes.items():
            own = self.other_sizes.get(name, (0.0, 0))
            self.other_sizes[name] = (own[0] + sums[0], own[1] + sums[1])
        self.rows_skipped += other.rows_skipped
        self.layers |= other.layers
        self.edited_in_decode |= other.edited_in_decode
        self.divergence = self.divergence.merged(other.divergence)
        self.details |= other.details
        self.latest = other.latest

    def edit_stats(self, *, heads: bool) -> EditStats:
        """These sums as shares; `heads` tells whether a site is a (step, layer, head) triple."""
        share = self.edited / self.eligible if self.eligible else None
        means = {name: total / count for name, (total, count) in self.other_sizes.items() if count}
        return EditStats(
            rows=self.rows,
            rows_touched=self.rows_touched,
            rows_skipped=dict(self.rows_skipped),
            steps=self.steps,
            steps_edited=self.steps_edited,
            layers_edited=sorted(self.layers),
            head_share=share if heads else None,
            site_share=share,
            size=self.size / self.size_count if self.size_count else None,
            prefill_only=None if not self.edited else not self.edited_in_decode,
            **self.divergence.figures,
            details=self.details | means,
        )
