"""Tables of the HTML report: what they hold, and how wide they are.

A table that does not fit is never cut: first the intervals go below their values, then each row becomes a
block. The style sheet does so by the widths of the text that are estimated here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

_LABEL = 15.5  # width of the column of labels; all widths are in digits
_PADDING = 1.0
_VALUE = 6.0  # the slot of a value, so that decimal points stand below each other
_MARK = 1.8
_STEP = 4  # widths are rounded up to a multiple of this, as each one needs its own style rules
_WORDS = 22.0  # the least width of a cell with a sentence
_NARROW, _WIDE = ".,:;'|! ijl", "mwMW%@+\N{MINUS SIGN}<>=\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Entry:
    """One line of a cell.

    Args:
        value: the figure, or words.
        interval: in brackets; "" for none.
        kind: "change" for a difference, "test" for its p.
        mark: "better" or "worse" for a difference that is marked.
    """

    value: str
    interval: str = ""
    kind: Literal["", "change", "test"] = ""
    mark: str = ""


@dataclass(frozen=True)
class Cell:
    """What one method has in one column.

    Args:
        entries: its lines; () for nothing.
        bar: length of a bar below them, in percent.
    """

    entries: tuple[Entry, ...] = ()
    bar: float | None = None

    @classmethod
    def of(cls, text: str) -> Cell:
        """A cell with a text; a hyphen stands for nothing."""
        return cls() if text == "-" else cls((Entry(text),))


@dataclass(frozen=True)
class Head:
    """The head of a column, and a remark below it."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    """A row with its label and what has to be known of it; that of a method that never acted is faint."""

    label: str
    cells: Sequence[Cell]
    tags: Sequence[str] = ()
    is_faint: bool = False


@dataclass(frozen=True)
class Body:
    """Rows that belong together."""

    rows: Sequence[TableRow]
    title: str = ""


@dataclass(frozen=True)
class HtmlTable:
    """A table.

    Args:
        caption: what it shows.
        corner: head of the column of labels.
        heads: of the other columns.
        bodies: its rows.
        prose: whether cells hold sentences.
    """

    caption: str
    corner: str
    heads: Sequence[Head]
    bodies: Sequence[Body]
    prose: bool = field(default=False, kw_only=True)

    @property
    def has_intervals(self) -> bool:
        """Whether a value has something beside it."""
        return any(entry.interval for cells in self._columns for cell in cells for entry in cell.entries)

    @property
    def stacked_below(self) -> int:
        """The width below which intervals go under their values, in digits."""
        return _rounded_up(self._width(stacked=False))

    @property
    def blocks_below(self) -> int:
        """The width below which each row is a block, in digits."""
        return _rounded_up(self._width(stacked=True))

    @property
    def _columns(self) -> list[list[Cell]]:
        rows = [row for body in self.bodies for row in body.rows]
        return [[row.cells[index] for row in rows] for index in range(len(self.heads))]

    def _width(self, *, stacked: bool) -> float:
        widths = []
        for head, cells in zip(self.heads, self._columns, strict=True):
            words = [*head.name.replace("-", "- ").split(), *head.note.split()]
            lines = [width_of(word) for word in words]
            lines += [self._line(entry, stacked) for cell in cells for entry in cell.entries]
            widths.append(max(lines, default=1) + _PADDING)
        return _LABEL + sum(widths)

    def _line(self, entry: Entry, stacked: bool) -> float:
        value = width_of(entry.value)
        if self.prose:
            return min(value, _WORDS)
        if entry.kind == "test":
            return value
        if self.has_intervals:
            value = max(value, _VALUE) + (_MARK if entry.kind == "change" else 0)
        interval = width_of(entry.interval)
        return max(value, interval) if stacked else value + interval + 0.6 * bool(interval)


def width_of(text: str) -> float:
    """About how wide a text is in a sans-serif font, in digits; rather too much than too little."""
    return sum(
        0.55 if each in _NARROW else 0.65 if each in "()[]{}/ft-" else 1.35 if each in _WIDE else 1.0
        for each in text
    )


def _rounded_up(width: float) -> int:
    return _STEP * math.ceil(width / _STEP)
