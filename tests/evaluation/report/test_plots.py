"""Plots: what is drawn where, files that are the same each time, and parts of a page."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from matplotlib import rc_context

from tests.support import outcomes
from tests.support.paths import ROOT
from tests.support.reports import Page
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.report.calibration_plot import calibration_plot
from vlmfix.evaluation.report.labels import overlap, place_labels
from vlmfix.evaluation.report.plots import Plot, write_plots
from vlmfix.evaluation.report.scales import scale
from vlmfix.evaluation.report.selection import select
from vlmfix.evaluation.report.tradeoff_plot import tradeoff_plot


def tradeoff(*several: Outcome) -> Plot | None:
    [comparison] = compare(several)
    return tradeoff_plot(comparison, select(comparison), "x-tradeoff")


def calibrations(*several: Outcome) -> Plot | None:
    [comparison] = compare(several)
    return calibration_plot(comparison, select(comparison), "x-calibration")


def text_of(plot: Plot | None) -> str:
    assert plot is not None
    return Page(f"<div>{plot.inline}</div>").text


def test_a_far_point_does_not_stretch_the_axis() -> None:
    near = [(value - 2, value, value + 2) for value in (8, 9, 11, 12)]
    assert scale(near) == scale([*near, (95.0, 97.0, 99.0)])
    found = scale([*near, (95.0, 97.0, 99.0), (0.0, 0.5, 1.0)])
    assert (found.low, found.high) == (0, 14)
    assert found.place(97) == (14, 1)
    assert found.place(-1) == (0, -1)
    assert found.place(9) == (9, 0)
    low, high = found.limits
    assert low < 0 < 14 < high


@pytest.mark.parametrize("values", [(1.0, 1.0), (1.0, 1.0, 1.0, 5.0), (0.0, 0.0), (1.0, 9.0)])
def test_scales_of_few_or_equal_points(values: tuple[float, ...]) -> None:
    found = scale([(value, value, value) for value in values])
    assert (found.low, found.high) == (min(values), max(values))
    assert found.limits[0] < found.limits[1]


def test_labels_keep_clear_of_each_other() -> None:
    points = [(20.0 + 3 * index, 50.0) for index in range(8)]
    frame = (0.0, 0.0, 200.0, 120.0)
    placed = place_labels(points, [(40.0, 8.0)] * 8, frame, [(0.0, 49.0, 200.0, 51.0)])
    boxes = [each.box for each in placed]
    for index, box in enumerate(boxes):
        assert overlap(box, frame) == pytest.approx(40 * 8)
        assert all(not overlap(box, other) for other in boxes[:index])
    assert any(each.is_far for each in placed)
    [alone] = place_labels([(100.0, 50.0)], [(40.0, 8.0)], frame, [])
    assert not alone.is_far


def test_tradeoff_of_captions() -> None:
    several = [
        outcomes.captions(f"method{index}(strength={index / 10})", images=60, care=index / 10, seed=index % 3)
        for index in range(9)
    ]
    plot = tradeoff(*several)
    text = text_of(plot)
    for outcome in several:
        assert outcome.method in text
    assert "CHAIRi, % (lower is better)" in text
    assert plot is not None
    assert "the upper left is best" in plot.caption
    assert "Arrows" not in plot.caption
    assert plot.description.startswith("method0(strength=0.0): CHAIRi 25.7, recall 89.8; method8(")


def test_a_degenerate_baseline_is_at_the_edge_with_its_value() -> None:
    several = [
        outcomes.yes_no(name, images=80, yes_bias=bias, baseline_of=of)
        for name, bias, of in (("greedy", 0.2, ""), ("a", 0.22, None), ("b", 0.18, None), ("yes", 1.0, ""))
    ]
    plot = tradeoff(*several)
    assert "yes \N{RIGHTWARDS ARROW} 100.0" in text_of(plot)
    assert plot is not None
    assert "Arrows lead to methods beyond the edge" in plot.caption
    shown = [float(each) for each in re.findall(r"(?<=>)\d+(?:\.\d)?(?=<)", plot.inline)]
    assert max(value for value in shown if value < 70) < 40  # ticks of the false-yes rate


def test_no_plot_without_two_points() -> None:
    assert tradeoff(outcomes.captions()) is None
    assert tradeoff(*(outcomes.captions(name, tradeoff=None) for name in "ab")) is None


def test_equal_methods_can_be_plotted() -> None:
    assert text_of(tradeoff(outcomes.captions("one", images=1), outcomes.captions("two", images=1)))


def test_further_methods_are_dots() -> None:
    several = [
        outcomes.captions(f"m{index}", images=40, care=index / 14, seed=index % 3) for index in range(14)
    ]
    plot = tradeoff(*several)
    assert plot is not None
    assert "Small dots are the further methods" in plot.caption
    assert sum(f">{each.method}<" in plot.inline for each in several) == 10


def test_calibration_of_the_reference_and_the_tested() -> None:
    several = [
        outcomes.with_margins(outcomes.yes_no(images=20, baseline_of="")),
        outcomes.with_margins(outcomes.yes_no("shifted", images=20, baseline_of=""), 1),
        *(outcomes.with_margins(outcomes.yes_no(f"m{index}", images=20), index) for index in range(2, 11)),
    ]
    plot = calibrations(*several)
    text = text_of(plot)
    assert "claimed probability of yes" in text
    assert len(re.findall(r"\(\d+\.\d %\)", text)) == 7
    assert "greedy (" in text
    assert "shifted" not in text
    assert plot is not None
    assert "in 10 bins of equal count" in plot.caption
    assert (
        calibrations(outcomes.yes_no(), outcomes.captions("x", task="pope", protocol="pope.llava/synthetic"))
        is None
    )


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    several = (outcomes.captions(images=30), outcomes.captions("x", images=30, care=0.8))
    for name, settings in (("a", {}), ("b", {"font.size": 20, "text.usetex": True, "svg.hashsalt": "other"})):
        (tmp_path / name).mkdir()
        with rc_context(settings):
            plot = tradeoff(*map(outcomes.shuffled, several) if name == "b" else several)
            assert plot is not None
            write_plots([plot], tmp_path / name / "report.html")
    written = {path.name: path.read_bytes() for path in (tmp_path / "a" / "figures").iterdir()}
    assert written.keys() == {"x-tradeoff.svg", "x-tradeoff.pdf"}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "b" / "figures").iterdir()}
    svg = written["x-tradeoff.svg"].decode()
    assert "<text" not in svg  # letters are outlines
    assert not re.search(r"dc:date|Matplotlib", svg)
    assert written["x-tradeoff.pdf"].startswith(b"%PDF")
    assert b"CreationDate" not in written["x-tradeoff.pdf"]
    write_plots([plot], tmp_path / "other.html")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "other-x-tradeoff.svg",
        "other-x-tradeoff.pdf",
    }


def test_labels_are_what_methods_are_called() -> None:
    nasty = ("$a_b$<b>&#1b1c1e", 'x(p=0.123456789) id="y"', 'url(#z) href="#z"')
    several = [
        outcomes.captions(images=20),
        *(outcomes.captions(name, images=20, care=0.8) for name in nasty),
    ]
    plot = tradeoff(*several)
    text = text_of(plot)
    for name in nasty:
        assert name in text
    assert plot is not None
    page = Page(f"<div>{plot.inline}</div>")
    assert page.tags["b"] == 0
    assert "style" not in page.tags
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert ids
    assert all(str(each).startswith("x-tradeoff-") for each in ids)


def test_colours_follow_the_page() -> None:
    inline = outcomes.two_tasks()[3:]
    plot = tradeoff(*inline)
    assert plot is not None
    assert not re.search(r"#[0-9a-f]{6}\b", plot.inline)
    assert {"ink", "soft", "rule", "accent"} <= set(re.findall(r"var\(--([\w-]+)\)", plot.inline))
    assert len(plot.inline) < 20_000


def imported(module: str) -> list[str]:
    """What the top level of a module of the package imports; of others, and of what is no module, nothing."""
    path = ROOT.joinpath(*module.split("."))
    source = next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)
    found = []
    for node in ast.parse("" if source is None else source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return found


def test_only_a_report_that_is_written_draws() -> None:
    """What a run needs before its report loads no matplotlib."""
    waiting, seen = ["vlmfix.cli.jobs", "vlmfix.tuning.write"], set[str]()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imported(module)
    assert "vlmfix.evaluation.report.html" in seen
    assert not any(each.partition(".")[0] == "matplotlib" for each in seen)


def test_names_of_files(tmp_path: Path) -> None:
    plot = tradeoff(outcomes.captions(), outcomes.captions("x"))
    assert plot is not None
    dataclasses.replace(plot, name="pope.llava/coco+x=1: a").write(tmp_path)
    assert (tmp_path / "pope.llava_coco+x=1_a.svg").exists()
