"""The maps are compared with where the objects really are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import vlmfix
from benchmarks import caption_maps, localization
from benchmarks.answers import Split
from vlmfix.models.embedded import EMBEDDED


@pytest.fixture(scope="module", params=EMBEDDED)
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return vlmfix.load(request.param)


def test_area_under_the_curve() -> None:
    positive = torch.tensor([True, True, False, False, False])
    for values, area in (
        ([3.0, 2, 1, 1, 0], 1.0),
        ([0.0, 0, 1, 2, 3], 0.0),
        ([1.0, 1, 1, 1, 1], 0.5),
        ([1.0, 3, 2, 2, 2], 0.5),
        ([2.0, 3, 2, 2, 1], 5 / 6),
    ):
        assert localization.area_under_curve(torch.tensor(values), positive) == pytest.approx(area)


def test_tokens_that_show_a_box(loaded: tuple[Any, Any]) -> None:
    """The upper left quarter of a picture is the upper left quarter of its token grid."""
    model, processor = loaded
    positive = localization.shown(model, processor, Image.new("RGB", (112, 112)), [(0, 0, 56, 56)])
    side = int(len(positive) ** 0.5)
    assert side**2 == len(positive)
    grid = positive.view(side, side)
    assert grid[: side // 2, : side // 2].all()
    assert not grid[side // 2 + 1 :].any()
    assert not grid[:, side // 2 + 1 :].any()


@pytest.mark.parametrize("model", EMBEDDED)
def test_small_job(model: str) -> None:
    app = typer.Typer()
    app.command()(localization.main)
    result = CliRunner().invoke(app, ["--model", model, "--scenes", "3"])
    assert result.exit_code == 0, result.output
    rows = [
        line.split(" | ") for line in result.stdout.splitlines() if line.startswith(("| gaze", "| attention"))
    ]
    assert len(rows) == 3 * 8
    assert all(0 <= float(cell.split()[0]) <= 1 for row in rows for cell in row[2:4])


@pytest.mark.slow
def test_maps_of_captions() -> None:
    """Good maps, random orders and reversed ones come out in this order, and maps beat their controls."""
    loaded = vlmfix.load("tiny-llava", dtype="float32")
    split = Split("localization", 770_002, 2)
    figures, areas = caption_maps.measure_maps(*loaded, split, steps=4)
    pointing = {
        name: row["pointing"].sums.sum() / row["pointing"].counts.sum() for name, row in figures.items()
    }
    assert max(pointing["band"], pointing["contrast"]) >= 0.9
    assert pointing["band"] > pointing["chance"] + 0.3
    assert pointing["band"] > pointing["always the middle"]
    deletion = {name: row["deletion"].sums.sum() for name, row in areas.items()}
    assert deletion["band"] < deletion["random"] < deletion["reverse"]
    lines = list(caption_maps.tables(figures, areas, 2))
    assert len(lines) == 2 + len(figures) + 1 + 2 + len(areas)
    assert {line.count("|") for line in lines[: 2 + len(figures)]} == {len(caption_maps.FIGURES) + 3}
