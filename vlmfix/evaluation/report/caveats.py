"""Caveats: what a reader must know before figures mislead, in sentences."""

from __future__ import annotations

from vlmfix.evaluation.analysis.comparison import Comparison, Row
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.sample import UNREACHED

_MOST_UNREAD = 0.2

FEW_IMAGES = 30
"""Below that, intervals are wide, and can be somewhat too short."""

NOTABLE_GAP = 0.005
"""Two parsers that differ by more than half a point are worth a note."""


def caveats(comparison: Comparison) -> list[str]:
    """Methods that are no better than the best of their baselines, and all of `warnings_of`."""
    verdicts = [
        f"{row.outcome.method}: {row.best.words} by {row.best.figures[0].metric.name}."
        for row in comparison.rows
        if row.best is not None and row.best.verdict != "better than"
    ]
    return [*verdicts, *warnings_of(comparison)]


def warnings_of(comparison: Comparison) -> list[str]:
    """Unfinished and unpaired methods, failed samples, undefined figures, parsers that disagree, and
    intervals that tests contradict."""
    found = [note for row in comparison.rows for note in _caveats(row)]
    gaps = {row.outcome.method: gap for row in comparison.rows if (gap := _parser_gap(row))}
    if gaps:
        method, (_, text) = max(gaps.items(), key=lambda each: each[1][0])
        found.append(
            f"Two parsers differ by more than {100 * NOTABLE_GAP:g} points for {len(gaps)} of "
            f"{len(comparison.rows)} methods, most for {method}: {text}."
        )
    for method, mark in comparison.main_marks.items():
        if mark.contradicts:
            found.append(f"{method}: no mark, as {mark.reason}.")
    outcome = comparison.rows[0].outcome
    units = len(set(outcome.clusters))
    if units < FEW_IMAGES:
        found.append(f"Few {outcome.unit}s ({units}): intervals are wide and can be somewhat too short.")
    return found


def progress(outcome: Outcome) -> tuple[int, int] | None:
    """Samples done, and samples asked for, of a run that has not ended; None if it has."""
    done = outcome.counts.get("answered", 0) + outcome.counts.get("failed", 0)
    asked = outcome.counts.get("samples", done)
    return (done, asked) if done < asked else None


def failed(outcome: Outcome) -> str:
    """Failed samples by reason, such as `3 of 400 samples failed (2 OSError, 1 ValueError)`; "" for none."""
    if not outcome.failures:
        return ""
    reasons = sorted(outcome.failures.items(), key=lambda each: (-each[1], each[0]))
    listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
    total = sum(outcome.failures.values())
    return f"{total:,} of {outcome.counts.get('samples', len(outcome.samples)):,} samples failed ({listed})"


def _caveats(row: Row) -> list[str]:
    outcome = row.outcome
    found = []
    if done := progress(outcome):
        found.append(f"partial ({done[0]:,} of {done[1]:,} samples)")
    if failures := failed(outcome):
        found.append(failures)
    if count := outcome.failures.get(UNREACHED):
        found.append(f"{count:,} answers were not reached, as the reasoning did not end within the limit")
    read = outcome.counts.get("answered", 0)
    if read and (unread := outcome.counts.get("unparsed", 0)) > _MOST_UNREAD * read:
        found.append(
            f"{unread:,} of {read:,} answers could not be read and count as wrong: the figures say more of "
            "their form than of what the model knows"
        )
    if row.unpaired:
        found.append(f"no paired differences: {row.unpaired}")
    undefined = [_place(each.metric.name, each.metric.group) for each in row.figures if not each.is_defined]
    if undefined:
        found.append(f"undefined for a zero denominator: {', '.join(undefined)}")
    return [f"{outcome.method}: {text}." for text in found]


def _parser_gap(row: Row) -> tuple[float, str] | None:
    """The widest gap between two parsers, with where it is, if it is notable."""
    values: dict[str, list[tuple[float, str]]] = {}
    for parser, figures in row.parsers.items():
        for each in figures:
            if each.metric.better and each.metric.percent and each.is_defined:
                place = _place(each.metric.name, each.metric.group)
                values.setdefault(place, []).append((each.estimate.value, parser))
    gaps = [(max(found)[0] - min(found)[0], place) for place, found in values.items()]
    gap, place = max(gaps, default=(0.0, ""))
    if gap <= NOTABLE_GAP:
        return None
    (least, low), (most, high) = min(values[place]), max(values[place])
    return gap, f"{place} is {100 * least:.1f} by {low} and {100 * most:.1f} by {high}"


def _place(name: str, group: str) -> str:
    return f"{name} ({group})" if group else name
