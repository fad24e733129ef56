"""Numbers as tables show them: shares in percent, one decimal, no negative zero."""

from __future__ import annotations

from typing import Any

from vlmfix.evaluation.analysis.comparison import Comparison, Row
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.analysis.results import AnyMetric
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.evaluation.report.json_summary import relative_costs


def number(value: float, *, percent: bool = False, signed: bool = False, further: int = 0) -> str:
    """A figure in a table: 0.8523 is 85.2 as a share; small figures that are no shares get two decimals.

    Args:
        value: the figure.
        percent: whether it is a share.
        signed: whether a plus is shown.
        further: decimals beyond the usual ones.
    """
    value = 100 * value if percent else value
    decimals = (1 if percent or abs(value) >= 10 else 2) + further
    rounded = round(value, decimals) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''},.{decimals}f}"


def title(metric: AnyMetric) -> str:
    """The head of a metric's column, with its unit."""
    return f"{metric.name}, %" if metric.percent else metric.name


def value_texts(figure: Figure) -> tuple[str, str]:
    """The value, and its interval in brackets."""
    return _texts(figure.estimate, percent=figure.metric.percent)


def difference_texts(figure: Figure) -> tuple[str, str]:
    """The difference and its interval, see `signed_texts`; the figure has a difference."""
    assert figure.difference is not None
    return signed_texts(figure.difference, percent=figure.metric.percent)


def signed_texts(difference: Estimate, *, percent: bool) -> tuple[str, str]:
    """A difference and its interval, with as many decimals as show that the interval excludes zero."""
    further = 0
    while further < 4 and difference.excludes_zero and _touches_zero(difference, percent, further):
        further += 1
    return _texts(difference, percent=percent, signed=True, further=further)


def _texts(estimate: Estimate, **style: Any) -> tuple[str, str]:
    ends = [number(end, **style) for end in (estimate.low, estimate.high) if end is not None]
    return number(estimate.value, **style), f"[{', '.join(ends)}]" if ends else "[-]"


def _touches_zero(estimate: Estimate, percent: bool, further: int) -> bool:
    ends = (estimate.low or 0, estimate.high or 0)
    return any(float(number(end, percent=percent, further=further).replace(",", "")) == 0 for end in ends)


def verdict(figure: Figure) -> str:
    """ "better" or "worse" where the interval of the difference lies on one side of zero; else ""."""
    return direction(figure.difference, figure.metric.better)


def direction(difference: Estimate | None, better: str) -> str:
    """ "better" or "worse" like `verdict`; of the metric, "higher" or "lower" is better, or neither: ""."""
    if difference is None or not difference.excludes_zero:
        return ""
    if not better:
        return "differs"
    return "better" if (difference.value > 0) == (better == "higher") else "worse"


def p_value(p: float) -> str:
    """A p value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def size(count: float) -> str:
    """A number of bytes in a handy unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"


def cost(name: str, value: float | None) -> str:
    """A measured cost, by the name that outcomes give it."""
    if value is None:
        return "-"
    if "memory" in name:
        return size(value)
    return f"{value:,.1f}" if value >= 100 else f"{value:,.3g}"


def companions(comparison: Comparison) -> list[dict[str, str]]:
    """What stands beside the headline: figures without a better direction, shares of samples, costs.

    Returns:
        For each method the texts by name; all have the same names in the same order.
    """
    group = comparison.groups[0] if comparison.groups else ""
    found = [_companions(row, group) | _costs(row, comparison.rows[0]) for row in comparison.rows]
    names = list(dict.fromkeys(name for each in found for name in each))
    return [{name: each.get(name, "-") for name in names} for each in found]


def spread_text(figure: Figure) -> str:
    """Mean and standard deviation over samples."""
    if figure.spread is None:
        return "-"
    percent, found = figure.metric.percent, figure.spread
    return f"{number(found.mean, percent=percent)} (SD {number(found.deviation, percent=percent)})"


def _companions(row: Row, group: str) -> dict[str, str]:
    texts = {
        title(each.metric): number(each.estimate.value, percent=each.metric.percent)
        for each in row.figures
        if each.metric.group == group and not each.metric.better
    }
    main = next((each for each in row.figures if each.metric.group == group and each.metric.better), None)
    if main and main.spread:
        texts = {f"{main.metric.name} over {len(main.spread.values)} repeats": spread_text(main)} | texts
    known = {each.metric.name for each in row.figures}
    counts = row.outcome.counts
    for name in ("unparsed", "truncated"):
        applies = name == "truncated" or row.outcome.yes_no or counts.get(name)
        if applies and name in counts and name not in known and counts.get("answered"):
            texts[f"{name}, %"] = number(counts[name] / counts["answered"], percent=True)
    return texts


def _costs(row: Row, first: Row) -> dict[str, str]:
    relative = relative_costs(row.outcome, first.outcome)
    texts = {name: cost(name, value) for name, value in row.outcome.costs.items()}
    if row is not first and (times := relative.get("seconds per sample")):
        texts["seconds per sample"] += f" (x{times:.2f})"
    return texts
