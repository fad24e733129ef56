"""Plots as vector graphics: one style for papers and for pages that are light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vlmfix.atomic import write_bytes
from vlmfix.evaluation.report.labels import place_labels

FIGURES = "figures"
"""Folder of plots, beside their page."""
WIDTH = 3.5
"""Of a plot in inches: a column of a paper."""

INK, SOFT, RULE, PAPER = "#1b1c1e", "#5b6067", "#d9dadd", "#ffffff"
ACCENT = "#1a5a9e"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that people with any kind of colour vision tell apart (Okabe and Ito)."""
MARKERS = ("o", "^", "D", "v", "P", "X")
"""One for each of these, as a print may be grey."""

SHADES = (ACCENT, "#6a4c9c", "#a8437f", "#c8483f", "#c77414")
"""Of what has an order, from low to high."""

_VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper", ACCENT: "accent"} | {
    colour: f"{kind}-{index}"
    for kind, colours in (("series", SERIES), ("shade", SHADES))
    for index, colour in enumerate(colours)
    if colour != ACCENT
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
    (r"<svg .*(viewBox=\"[^\"]*\").*>", r'<svg \1 aria-hidden="true">'),
    (r"xlink:href", "href"),
    (r"font-family: [^;\"]*;? ?", ""),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"(\d\.\d\d)\d+", r"\1"),
    (r"\n", ""),
)
"""What a page has no use for in the tags of a plot; the words between them stay as they are."""
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_NO_PDF_METADATA = dict.fromkeys(("Creator", "Producer", "CreationDate"))


@dataclass(frozen=True)
class Plot:
    """A plot that is drawn.

    Args:
        name: of its files; signs that do not belong into the name of a file are replaced.
        caption: what it shows, and how it is read.
        description: its figures in words, for those who do not see it.
        figure: of matplotlib.
    """

    name: str
    caption: str
    description: str
    figure: Figure

    @property
    def _key(self) -> str:
        return re.sub(r"[^\w.=+-]+", "_", self.name)

    @property
    def inline(self) -> Markup:
        """The plot as a part of a page, in the colours and the font of the page."""
        source = _saved(self.figure, "svg", {"svg.fonttype": "none"}, _NO_METADATA).decode()
        source = source[source.index("<svg") :]
        source = re.sub(r"<style.*?</style>", "", source, flags=re.DOTALL)  # it is about the whole page
        source = re.sub(r">\s+<", "><", source)
        used = set(re.findall(r"(?:url\(|href=\")#(\w+)", source))
        return Markup(re.sub(r"<[^>]*>", lambda tag: self._tag(tag[0], used), source))

    def _tag(self, tag: str, used: set[str]) -> str:
        """A tag for a page, where other plots have the same ids."""
        for pattern, replacement in _FOR_A_PAGE:
            tag = re.sub(pattern, replacement, tag, flags=re.DOTALL)
        for colour, variable in _VARIABLES.items():
            tag = tag.replace(colour, f"var(--{variable})")
        tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
        return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{self._key}-", tag)

    def write(self, folder: Path, prefix: str = "") -> None:
        """Write it as SVG, with letters as outlines, and as PDF."""
        for kind, metadata in (("svg", _NO_METADATA), ("pdf", _NO_PDF_METADATA)):
            content = _saved(self.figure, kind, {"svg.fonttype": "path"}, metadata)
            write_bytes(folder / f"{prefix}{self._key}.{kind}", content)


def write_plots(plots: Sequence[Plot], page: Path) -> None:
    """Write the plots of a page as files into a folder beside it, if there are any.

    Args:
        plots: of the page.
        page: its file. Unless it is called "report", the names of the files begin with its name.
    """
    folder = page.parent / FIGURES
    for plot in plots:
        folder.mkdir(exist_ok=True)
        plot.write(folder, "" if page.stem == "report" else f"{page.stem}-")


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style, whatever the settings of the machine are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Any]:
    """A figure of a height in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def label_points(
    figure: Figure,
    axes: Any,
    labels: Sequence[tuple[str, tuple[float, float]]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> None:
    """Put labels beside points, where they hide least; nothing that changes the frame may be drawn later.

    Args:
        figure: to draw on.
        axes: of the points, with their limits.
        labels: each text with the place of its point.
        lines: what else is drawn: two values across and two up each.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the frame stays where it is now
    ground = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.3}
    texts = [axes.text(0, 0, text, fontsize=7, zorder=4, bbox=ground) for text, _ in labels]
    extents = [text.get_window_extent() for text in texts]
    here, back = axes.transData.transform, axes.transData.inverted().transform
    corners = [[here(end) for end in zip(*line, strict=True)] for line in lines]
    obstacles = [
        (min(x) - 1, min(y) - 1, max(x) + 1, max(y) + 1)
        for x, y in (zip(*each, strict=True) for each in corners)
    ]
    points = [tuple(here(at)) for _, at in labels]
    sizes = [(extent.width, extent.height) for extent in extents]
    places = place_labels(points, sizes, axes.bbox.extents, obstacles)
    for text, place, point in zip(texts, places, points, strict=True):
        left, low, right, high = place.box
        text.set(position=back((left, low)), verticalalignment="bottom")
        if place.is_far:
            end = (min(max(point[0], left), right), low if low > point[1] else high)
            axes.plot(*zip(back(point), back(end), strict=True), color=SOFT, linewidth=0.5, zorder=1)


def shortened(text: str, longest: int = 28) -> str:
    """A label that may be too long for a plot."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _saved(figure: Figure, kind: str, settings: dict[str, Any], metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with style(), matplotlib.rc_context(settings):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
