"""The results of a search as one HTML page that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.atomic import write_text
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.evaluation.report.formatting import cost, direction, p_value, signed_texts
from vlmfix.evaluation.report.page_style import page_environment, page_style
from vlmfix.tuning.contributions import contributions
from vlmfix.tuning.final import PLAIN, RECIPE
from vlmfix.tuning.measure import Measure, mean_of, row_value
from vlmfix.tuning.objective import AUC, COST, Guard
from vlmfix.tuning.pareto import pareto_plane


def write_page(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the page, and its plots as files in a folder beside it.

    Args:
        path: of the HTML file.
        summary: the content of `results.json`, see `vlmfix.tuning.write.write_results`.
    """
    from vlmfix.evaluation.report.plots import write_plots
    from vlmfix.tuning.contribution_plot import contribution_plot
    from vlmfix.tuning.pareto_plot import pareto_plot

    measures = {name: Measure(name, **each) for name, each in summary["metrics"].items()}
    guards = [Guard.parse(text, dict.fromkeys(measures, "")) for text in summary["guards"]]
    guarded = (guard.metric for guard in guards)
    plane = pareto_plane(summary, measures, guards)
    parts = [contribution_plot(each) for each in contributions(summary, measures)]
    front = None if plane is None else pareto_plot(plane)
    environment = page_environment("vlmfix.tuning", "vlmfix.evaluation.report")
    environment.globals |= {
        "AUC": AUC,
        "COST": COST,
        "PLAIN": PLAIN,
        "RECIPE": RECIPE,
        "cost_text": cost,
        "difference": _difference,
        "mean_of": mean_of,
        "p_value": p_value,
    }
    page = environment.get_template("tune.html.j2").render(
        summary=summary,
        measures=measures,
        asked=_asked(summary, measures),
        columns=[name for name in dict.fromkeys((*summary["objective"], *guarded)) if name != COST],
        guards=_guards(summary, guards, measures),
        finalists=_finalists(summary),
        parts=parts,
        front=front,
        importances=_importances(summary["importances"]),
        trials=_best_first(summary["trials"]),
        style=page_style(),
    )
    write_plots([*parts, *([front] if front else [])], path)
    write_text(path, page)


def _asked(summary: Mapping[str, Any], measures: Mapping[str, Measure]) -> dict[str, str]:
    """What was asked for, and on what, in words."""
    settings, trials = summary["settings"], summary["trials"]
    complete = sum(trial["is_complete"] for trial in trials)
    minutes = sum(trial["seconds"] for trial in trials) / 60
    asked = {
        "model": settings["model"] + (f", {settings['revision']}" if settings["revision"] else ""),
        "task": settings["task"] + (f" ({settings['protocol']})" if settings["protocol"] else ""),
        "objective": "\n".join(f"{name}, {measures[name].better} is better" for name in summary["objective"]),
        "guards": "\n".join(summary["guards"]) or "none",
        "images": "\n".join(
            f"{name}: {each['search']:,} to search, {each['choice']:,} to choose, {each['test']:,} to test"
            for name, each in summary["images"].items()
        ),
        "trials": f"{len(trials)} of {settings['trials']}: {complete} on all images of the search, "
        f"{len(trials) - complete} given up before; {minutes:,.0f} min",
        "seed": str(settings["seed"]),
    }
    if settings["budget"]:
        asked["budget"] = f"{settings['budget'] / 60:,.0f} min"
    return asked


def _difference(difference: Mapping[str, Any], measure: Measure) -> dict[str, str]:
    """A difference to greedy decoding: its value, its interval, and whether that is better or worse."""
    estimate = Estimate(**difference)
    value, ends = signed_texts(estimate, percent=measure.percent)
    return {"value": value, "ends": ends, "direction": direction(estimate, measure.better)}


@dataclass(frozen=True)
class _Kept:
    """A guard on the test images of one data set."""

    data: str
    guard: str
    greedy: str
    recipe: str
    difference: dict[str, str] | None
    verdict: str


def _guards(
    summary: Mapping[str, Any], guards: Sequence[Guard], measures: Mapping[str, Measure]
) -> list[_Kept]:
    found = []
    for table in summary["test"]:
        rows = {row["label"]: row for row in table["rows"]}
        for guard in guards:
            measure = measures[guard.metric]
            greedy, recipe = (row_value(rows[label], guard.metric) for label in (PLAIN, RECIPE))
            cell = rows[RECIPE]["cells"].get(guard.metric)
            difference = None if cell is None else cell["difference"]
            found.append(
                _Kept(
                    table["data"],
                    str(guard),
                    measure.text(greedy),
                    measure.text(recipe),
                    None if difference is None else _difference(difference, measure),
                    _verdict(guard, greedy, recipe, difference),
                )
            )
    return found


def _verdict(
    guard: Guard, greedy: float | None, recipe: float | None, difference: Mapping[str, Any] | None
) -> str:
    if greedy is None or recipe is None:
        return "unknown"
    if guard.violation({guard.metric: recipe}, {guard.metric: greedy}) > 0:
        return "broken"
    end = None if difference is None else difference["low" if guard.is_floor else "high"]
    if end is not None and (end < guard.bound if guard.is_floor else end > guard.bound):
        return "holds, but the interval reaches past the bound"
    return "holds"


@dataclass(frozen=True)
class _Judged:
    """A finalist, and why it was taken or not."""

    candidate: str
    gains: Sequence[float]
    figures: Mapping[str, Mapping[str, float]]
    is_taken: bool
    reason: str


def _finalists(summary: Mapping[str, Any]) -> list[_Judged]:
    found = []
    for place, each in enumerate(summary["finalists"]):
        is_taken = each["candidate"] == summary["chosen"]
        if is_taken:
            reason = "taken: the best one that keeps the guards"
        elif each["broken"]:
            reason = "breaks " + "; ".join(each["broken"])
        elif each["gains"][0] <= 0:
            reason = "not better than greedy decoding"
        elif place == 0:
            reason = "better on no data set by an interval that excludes 0"
        else:
            reason = "less gain than the first, or as much at a higher cost"
        found.append(_Judged(each["candidate"], each["gains"], each["figures"], is_taken, reason))
    return found


def _importances(importances: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(importances.items(), key=lambda each: -each[1])


def _best_first(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Trials on more images before others, then by what the search makes large."""
    return sorted(trials, key=lambda each: (-each["is_complete"], -each["images"], -each["value"]))
