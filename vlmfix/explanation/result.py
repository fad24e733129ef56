"""Explanations that show and save themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from vlmfix.atomic import write_text
from vlmfix.explanation.arrays import ExplanationArrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation(ExplanationArrays):
    """Where a model looked while it answered, and where a method changed its mind; see `vlmfix.explain`.

    In a notebook it shows itself. What it holds are the fields of `ExplanationArrays`.
    """

    def plot(self, kind: str = "maps", word: str | int | None = None) -> Figure:
        """A figure of matplotlib, in the size of a column of a paper.

        Args:
            kind: one of `vlmfix.explanation.figures.KINDS`.
            word: that maps, cuts and curves are of, see `find`; None: the one that is explained in full.

        Raises:
            ValueError: there is no such figure, or nothing to show in it.
        """
        from vlmfix.explanation.figures import draw

        return draw(self, kind, self.word if word is None else self.find(word)).figure

    def html(self) -> str:
        """One page that needs nothing but a browser; equal for equal explanations."""
        from vlmfix.explanation.page import page

        return page(self)

    def json(self) -> str:
        """Its numbers as JSON, six digits each; equal for equal explanations."""
        from vlmfix.explanation.export import numbers

        return json.dumps(numbers(self), indent=1, sort_keys=True, allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Write the page, or with the suffix `.json` the numbers.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(path)
        write_text(path, self.json() if path.suffix == ".json" else self.html())
        return path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for notebooks."""
        return (
            f'<iframe srcdoc="{escape(self.html())}" sandbox="allow-scripts" title="vlmfix explain" '
            'style="width: 100%; height: 48rem; border: 0"></iframe>'
        )
