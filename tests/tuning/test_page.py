"""The page of a search: complete for captions and questions, harmless, and readable without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.support import searches
from tests.support.reports import Page
from vlmfix.tuning.contributions import charts
from vlmfix.tuning.page import write_page
from vlmfix.tuning.pareto import Measure, pareto_plot


def written(path: Path, summary: dict[str, Any]) -> str:
    """The source, with plain signs for minus and dash."""
    write_page(path / "tune.html", summary)
    source = (path / "tune.html").read_text(encoding="utf-8")
    return source.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")


def measures(summary: dict[str, Any]) -> dict[str, Measure]:
    return {name: Measure(name, **each) for name, each in summary["metrics"].items()}


def test_captions_with_a_recipe(tmp_path: Path) -> None:
    page = Page(written(tmp_path, searches.captions()))
    for text in (
        "CHAIRi, lower is better",
        "recall >= -0.01 cost <= 6",
        "usual: 40 to search, 41 to choose, 100 to test",
        "5 of 60: 4 on all images of the search, 1 given up before",
        "vcd (logits): alpha = 0.5, beta = 0.1",
        "baseline.beam (decoding), at its defaults",
        "-4.9 [-7.0, -3.0] ▲",
        "+1.0 [-]",
        "<0.001 ✱",
        "the corrected p is 0.2",
        "greedy, cut to the recipe",
        "without baseline.beam",
        "holds, but the interval reaches past the bound",
        "The test images have been used now",
        "the upper left is best",
        "taken: the best one that keeps the guards",
        "breaks recall >= -0.01 on usual",
        "4 given up",
    ):
        assert text in page.text, text
    assert page.tags["caption"] == page.tags["table"] == 6
    assert [each["class"] for each in page.all("g") if "greedy" in str(each["class"])] == [
        "trial greedy s0"
    ] * 2
    first = page.text.index("All trials Trials,")
    assert page.text.index("+5.0", first) < page.text.index("+4.0", first) < page.text.index("-10.0", first)


def test_questions_without_a_recipe(tmp_path: Path) -> None:
    page = Page(written(tmp_path, searches.yes_no()))
    for text in (
        "nothing is better than greedy decoding in AUC on the images of the choice, on the whole and on one",
        "The test images were not touched",
        "guards none",
        "120 min",
        "cost against AUC",
        "the lower right is best",
        "not better than greedy decoding",
        "The importance of the places is not known",
    ):
        assert text in page.text, text
    assert page.tags["table"] == 2
    assert "What each part contributes" not in page.text


def test_questions_with_a_recipe_of_one_part_and_an_offset(tmp_path: Path) -> None:
    values = {"AUC": 0.9, "accuracy": 0.85}
    differences = {"AUC": (0.02, 0.01, 0.03), "accuracy": (0.0, None, None)}
    part = {"name": "vcd", "parameters": {}, "changes": "logits"}
    rows = [
        searches.row("greedy", values),
        searches.row("greedy, no offset", {"accuracy": 0.8}, differences),  # as if it had no margins
        searches.row("recipe", values, differences, p=0.01),
    ]
    table = {"data": "pope", "images": 40, "metrics": ["AUC", "accuracy"], "rows": rows}
    found = {"chosen": "vcd", "parts": [part], "offset": -0.25, "test": [table]}
    page = Page(written(tmp_path, searches.yes_no() | found))
    for text in (
        "offset of -0.250 nats",
        "a single part",
        "greedy, no offset - 80.0",
        "Each row has its own offset",
    ):
        assert text in page.text, text


def test_several_objectives(tmp_path: Path) -> None:
    summary = searches.captions()
    summary |= {"objective": ["cost", "CHAIRi"], "guards": [], "importances": {}}
    for each in (*summary["trials"], *summary["finalists"]):
        each["gains"] = [0.0, *each["gains"]]
    page = Page(written(tmp_path, summary))
    assert "CHAIRi against cost" in page.text
    assert "gain in cost gain in CHAIRi" in page.text
    assert page.tags["svg"] == 7  # two of each for wide and narrow screens, and a key


def test_labels_are_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>\"'&<img src=http://evil.example/x onerror=a()>{{ 7 * 7 }}"
    summary = searches.captions()
    summary["settings"]["model"] = nasty
    summary["images"][nasty] = summary["images"]["usual"]
    summary["test"][0]["data"] = nasty
    summary["test"][0]["rows"][1]["label"] = nasty
    summary["trials"][1]["candidate"] = summary["finalists"][1]["candidate"] = nasty
    summary["trials"][2]["broken"] = [nasty]
    summary["parts"][0]["parameters"] = {nasty: nasty}
    source = written(tmp_path, summary)
    page = Page(source)
    assert not page.tags["script"] + page.tags["img"]
    assert page.text.count("<script>alert(1)</script>") > 8
    links = [value for _, own in page.elements for name, value in own.items() if name in ("href", "src")]
    assert all(str(link).startswith(("#", "data:")) for link in links)
    assert set(re.findall(r"url\(([^)]*)\)", source)) == {"#front-1-frame", "#front-2-frame"}
    assert "@import" not in source


def test_geometry() -> None:
    summary = searches.captions()
    several = measures(summary)
    plot = pareto_plot(summary, several, [], width=680, height=430)
    assert plot is not None
    assert plot.y_name == "cost"  # no guard: cheap against good
    at = {point.kind: (point.x, point.y) for point in plot.points}
    x, y = at["recipe"]
    vhr = next(point for point in plot.points if point.name == "vhr(strength=2)")
    vcd = next(point for point in plot.points if point.name.startswith("vcd("))
    assert plot.front == f"M{x} {y}H{vcd.x}V{vcd.y}H{vhr.x}V{vhr.y}"  # greedy is as cheap as vhr, and worse
    assert plot.legend == []
    left, top, right, bottom = plot.frame
    assert all(left <= point.x <= right and top <= point.y <= bottom for point in plot.points)

    [chart] = charts(summary, several, width=680)
    bars = {group.name: group.bars[0] for group in chart.groups}
    assert [bar.text for bar in bars.values()] == ["+4.9", "+1.4", "+2.9", "-0.3"]
    assert bars["the whole recipe"].left == bars["vhr"].left == chart.zero
    assert bars["baseline.beam"].left + bars["baseline.beam"].length == chart.zero

    summary["parts"] = summary["parts"][:2]  # without one of two, the other one is left
    [chart] = charts(summary, several, width=680)
    assert [group.bars[0].text for group in chart.groups] == ["+4.9", "+3.9", "+3.9"]
