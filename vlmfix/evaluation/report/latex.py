"""The headline figures of a job as LaTeX tables in the style of booktabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmfix.evaluation.analysis.comparison import Comparison, Row
from vlmfix.evaluation.analysis.marks import Mark
from vlmfix.evaluation.analysis.results import AnyMetric
from vlmfix.evaluation.report.caveats import caveats
from vlmfix.evaluation.report.formatting import title, value_texts

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_tables(comparisons: Sequence[Comparison]) -> str:
    """A table for each task: the headline figures of every method with intervals, the first one with marks.

    Marks follow `vlmfix.evaluation.analysis.marks`; why a method has none, and all caveats, are comments.

    Args:
        comparisons: from `vlmfix.evaluation.analysis.comparison.compare`.
    """
    tables = ["\n".join(_table(comparison)) for comparison in comparisons if comparison.rows[0].figures]
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables]) + "\n"


def _table(comparison: Comparison) -> Iterator[str]:
    group = comparison.groups[0]
    headline = comparison.headline(group)
    found = comparison.main_marks
    first = comparison.rows[0].outcome.method
    caption = f"{comparison.title}. In brackets: 95 % intervals, clustered by image."
    if found:
        caption += (
            f" *: {headline[0].name} differs from that of {first}: the interval of the paired difference "
            "excludes 0, and p of the swap test is below .05, corrected (Holm) for the number of methods "
            f"({len(found)})."
        )
    yield from (f"% {line}" for line in caveats(comparison))
    yield from (f"% no mark for {name}: {each.reason}" for name, each in found.items() if not each.marked)
    yield r"\begin{table}"
    yield r"\centering"
    yield rf"\caption{{{_escaped(caption)}}}"
    yield rf"\begin{{tabular}}{{l{'r' * len(headline)}}}"
    yield r"\toprule"
    yield " & ".join(["method", *(_escaped(title(metric)) for metric in headline)]) + r" \\"
    yield r"\midrule"
    for row in comparison.rows:
        yield " & ".join([_escaped(row.outcome.method), *_cells(row, headline, group, found)]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"


def _cells(row: Row, headline: Sequence[AnyMetric], group: str, found: dict[str, Mark]) -> Iterator[str]:
    for place, metric in enumerate(headline):
        figure = row.figure(metric.name, group)
        if figure is None or not figure.is_defined:
            yield "--" if figure is None else "undefined"
            continue
        value, interval = value_texts(figure)
        own = found.get(row.outcome.method)
        mark = "$^{*}$" if place == 0 and own is not None and own.marked else ""
        yield rf"{value}{mark} {{\scriptsize {interval}}}"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)
