"""A survey as one HTML page, and as JSON."""

from __future__ import annotations

import dataclasses
import json

from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.evaluation.report.page_style import page_environment, page_style
from vlmfix.evaluation.report.plots import Plot, style
from vlmfix.explanation.export import rounded
from vlmfix.explanation.figures import cut_figure
from vlmfix.explanation.knockout import RULES
from vlmfix.explanation.page import asset
from vlmfix.explanation.survey import KINDS, Survey


def survey_page(survey: Survey) -> str:
    """The page; equal for equal surveys."""
    environment = page_environment("vlmfix.explanation", "vlmfix.evaluation.report")
    environment.filters["estimate"] = estimate_text
    return environment.get_template("survey.html.j2").render(
        survey=survey,
        kinds=KINDS,
        plot=survey_plot(survey),
        style=page_style(),
        own_style=asset("explain.css"),
    )


def survey_plot(survey: Survey) -> Plot | None:
    """What cutting paths does to present and to invented objects; None: no paths were cut."""
    kinds = {
        kind: ({rule: survey.table[rule][kind].value for rule in RULES}, survey.sliding[kind])
        for kind in KINDS
        if kind in survey.sliding
    }
    if not kinds:
        return None
    with style():
        figure = cut_figure(kinds, survey.window)
    said = "; ".join(
        f"{kind}: " + ", ".join(f"{rule} {value:+.2f}" for rule, value in changes.items())
        for kind, (changes, _) in kinds.items()
    )
    return Plot(
        "cuts",
        "Change of the log probability of words that name objects when attention paths are cut: in all "
        "layers, by path; below, from all text to the image in a few layers.",
        f"Change of log p in nats. {said}.",
        figure,
    )


def survey_json(survey: Survey) -> str:
    """The numbers, six digits each; equal for equal surveys."""
    content = dataclasses.asdict(survey)
    content["findings"] = [each._asdict() for each in survey.findings]
    content["judged"] = {
        name: {key: each._asdict() for key, each in own.items()} for name, own in survey.judged.items()
    }
    return json.dumps(rounded(content), indent=1, sort_keys=True, allow_nan=False)


def estimate_text(estimate: Estimate | None) -> str:
    """A mean with its interval, or a dash."""
    if estimate is None:
        return "\u2013"
    value = f"{estimate.value:.3f}"
    if estimate.low is None or estimate.high is None:
        return value.replace("-", "\u2212")
    return f"{value} ({estimate.low:.3f} to {estimate.high:.3f})".replace("-", "\u2212")
