"""The page of a search: complete for captions and questions, harmless, and readable without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import searches
from tests.support.reports import Page
from vlmfix.tuning.contributions import contributions
from vlmfix.tuning.measure import Measure
from vlmfix.tuning.page import write_page
from vlmfix.tuning.pareto import pareto_plane


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
    figures = {each.name for each in (tmp_path / "figures").iterdir()}
    assert figures == {
        f"tune-{name}.{kind}" for name in ("parts-CHAIRi", "pareto") for kind in ("svg", "pdf")
    }
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
    assert page.tags["svg"] == 3


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
    assert page.text.count("<script>alert(1)</script>") == 8
    links = [value for _, own in page.elements for name, value in own.items() if name in ("href", "src")]
    assert all(str(link).startswith(("#", "data:")) for link in links)
    assert all(each.startswith("#") for each in re.findall(r"url\(([^)]*)\)", source))
    assert "@import" not in source


def test_plane_of_trials_and_what_parts_contribute() -> None:
    summary = searches.captions()
    several = measures(summary)
    plane = pareto_plane(summary, several, [])
    assert plane is not None
    assert plane.y[0].name == "cost"  # no guard: cheap against good
    at = {point.kind: point.at for point in plane.points}
    means = {"recipe": 0.10, "vcd": 0.11, "vhr": 0.13}
    corners = [
        (means["recipe"], 6),
        (means["vcd"], 6),
        (means["vcd"], 2),
        (means["vhr"], 2),
        (means["vhr"], 1),
    ]
    assert plane.front == [
        pytest.approx(corner) for corner in corners
    ]  # greedy is as cheap as vhr, and worse
    assert at["recipe"] == pytest.approx(corners[0])
    assert plane.legend == []
    assert plane.corner == "lower left"

    [found] = contributions(summary, several)
    gains = {part: [round(gain, 4) for gain in each.values()] for part, each in found.gains.items()}
    assert gains == {
        "the whole recipe": [0.0489] * 2,
        "vhr": [0.0139] * 2,
        "vcd": [0.0289] * 2,
        "baseline.beam": [-0.0031] * 2,
    }
    summary["parts"] = summary["parts"][:2]  # without one of two, the other one is left
    [found] = contributions(summary, several)
    assert [round(each["usual"], 4) for each in found.gains.values()] == [0.0489, 0.0389, 0.0389]


def test_trials_far_away_are_counted_and_not_drawn() -> None:
    summary = searches.captions()
    trials = list(summary["trials"])
    for rate in (0.09, 0.1, 0.11, 0.9):
        figures = {"usual": {"CHAIRi": rate, "recall": 0.7, "cost": 1}}
        summary["trials"].append({**trials[1], "figures": figures})
    plane = pareto_plane(summary, measures(summary), [])
    assert plane is not None
    assert plane.outside == 2  # and the one that was given up
    assert max(point.at[0] for point in plane.points) == pytest.approx(0.15)
