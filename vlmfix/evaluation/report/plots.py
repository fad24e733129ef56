"""Plots as vector graphics: one style for papers and for pages that are light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlmfix.atomic import write_bytes

WIDTH = 3.5
"""Of a plot in inches: a column of a paper."""

INK, SOFT, RULE, PAPER = "#1b1c1e", "#5b6067", "#d9dadd", "#ffffff"
ACCENT = "#1a5a9e"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that people with any kind of colour vision tell apart (Okabe and Ito)."""
MARKERS = ("o", "^", "D", "v", "P", "X")
"""One for each of these, as a print may be grey."""

_VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper", ACCENT: "accent"} | {
    colour: f"series-{index}" for index, colour in enumerate(SERIES)
}
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that no machine draws otherwise
    "font.size": 7.5,
    "text.parse_math": False,  # labels are what users call their methods
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1,
    "text.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "vlmfix",
    "pdf.fonttype": 42,  # text stays text
}
_FOR_A_PAGE = (
    (r"<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">'),
    (r"<defs>\s*<style.*?</style>\s*</defs>", ""),  # it is about everything on the page
    (r"xlink:href", "href"),
    (r"font-family: [^;\"]*;? ?", ""),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"(\d\.\d\d)\d+", r"\1"),
    (r"(?<=[^>])\n(?=[^<])", ""),
    (r">\s+<", "><"),
)
"""What a page has no use for, and what would reach beyond the plot."""
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_NO_PDF_METADATA = dict.fromkeys(("Creator", "Producer", "CreationDate"))


@dataclass(frozen=True)
class Plot:
    """A plot that is drawn.

    Args:
        name: of its files.
        caption: what it shows, and how it is read.
        description: its figures in words, for those who do not see it.
        figure: of matplotlib.
    """

    name: str
    caption: str
    description: str
    figure: Figure

    @property
    def inline(self) -> Markup:
        """The plot as a part of a page, in the colours and the font of the page."""
        source = _saved(self.figure, "svg", {"svg.fonttype": "none"}, _NO_METADATA).decode()
        source = source[source.index("<svg") :]
        for pattern, replacement in _FOR_A_PAGE:
            source = re.sub(pattern, replacement, source, flags=re.DOTALL)
        for colour, variable in _VARIABLES.items():
            source = source.replace(colour, f"var(--{variable})")
        used = set(re.findall(r"#(\w+)[\")]", source))
        source = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", source)
        for reference in used:  # several plots may stand on one page
            source = re.sub(rf'(id="|#){reference}\b', rf"\g<1>{self.name}-{reference}", source)
        return Markup(source)

    def write(self, folder: Path, prefix: str = "") -> None:
        """Write it as SVG, with letters as outlines, and as PDF."""
        for kind, metadata in (("svg", _NO_METADATA), ("pdf", _NO_PDF_METADATA)):
            content = _saved(self.figure, kind, {"svg.fonttype": "path"}, metadata)
            write_bytes(folder / f"{prefix}{self.name}.{kind}", content)


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style, whatever the settings of the machine are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Any]:
    """A figure of a height in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    return figure, figure.add_subplot()


def shortened(text: str, longest: int = 28) -> str:
    """A label that may be too long for a plot."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _saved(figure: Figure, kind: str, settings: dict[str, Any], metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with style(), matplotlib.rc_context(settings):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
