"""Published tables: what their files say, what job they are, and where published figures lie."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from vlmfix.evaluation import reproduction as module
from vlmfix.evaluation.analysis.comparison import Figure
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.evaluation.reproduction import (
    CONDITIONS,
    Line,
    Published,
    Table,
    compared,
    load_table,
    report_lines,
    tables,
)
from vlmfix.evaluation.runner.config import make_job

METRICS = {
    "pope": {"accuracy", "F1"},
    "chair": {"CHAIRs", "CHAIRi", "recall", "F1", "words"},
    "vqa": {"accuracy"},
}
SPLITS = {"", "random", "popular", "adversarial"}


@pytest.fixture(params=tables())
def table(request: pytest.FixtureRequest) -> Table:
    return load_table(request.param)


def test_a_table_is_a_job(table: Table) -> None:
    settings = table.settings(model=None, is_synthetic=False)
    job = make_job(settings | {"output": "out"})
    assert job.model == table.model
    assert job.protocols[table.task].task == table.task
    assert not job.baselines
    assert len(job.variants) == len(table.rows)
    assert job.variants[0].methods == ()
    assert table.name.partition("/")[0] in (*table.methods, "greedy")
    trial = make_job(table.settings(model="tiny-llava", is_synthetic=True) | {"output": "out"})
    assert (trial.model, trial.protocols) == ("tiny-llava", {})


def test_a_table_says_what_it_is_of(table: Table) -> None:
    assert table.source
    assert tuple(table.published) == CONDITIONS
    assert all(each.endswith(".") and each[0].isupper() for each in table.deviations)
    for row in table.rows:
        for figure in row.figures:
            assert figure.metric in METRICS[table.task]
            assert figure.group in (SPLITS if table.task == "pope" else {""})
            assert 0 < figure.low <= figure.high < (200 if figure.metric == "words" else 100)
    figures = [{(figure.metric, figure.group) for figure in row.figures} for row in table.rows]
    assert all(figures[0] & each for each in figures)


@pytest.mark.parametrize(
    ("name", "row", "figures"),
    [
        ("vhr/chair", 3, {"CHAIRs": (33.32, 33.32), "CHAIRi": (9.71, 9.71)}),
        ("vhr/pope", 1, {"F1": (85.47, 85.47)}),
        ("gift/pope", 0, {"accuracy": (79.5, 79.5), "F1": (82.4, 82.4)}),
        ("opera/chair", 2, {"CHAIRs": (44.8, 44.8), "CHAIRi": (12.833, 12.833), "recall": (78.87, 78.87)}),
        ("deco/chair", 1, {"CHAIRs": (35.8, 37.8), "CHAIRi": (10.0, 11.1), "recall": (74.2, 74.2)}),
        ("var/vqa", 1, {"accuracy": (78.6, 78.6)}),
    ],
)
def test_figures(name: str, row: int, figures: dict[str, tuple[float, float]]) -> None:
    found = load_table(name).rows[row].figures
    assert {each.metric: (each.low, each.high) for each in found} == figures


def test_splits() -> None:
    found = [(each.group, str(each)) for each in load_table("vcd/pope").rows[1].figures]
    assert found == [("random", "84.8 to 87.7"), ("popular", "81.1 to 85.4"), ("adversarial", "75.6 to 80.9")]


def test_parameters_that_only_fit_the_published_model() -> None:
    table = load_table("rudder/chair-qwen2.5-vl")
    own, other = (
        table.settings(model=model, is_synthetic=False)["methods"][1] for model in (None, "tiny-qwen2.5-vl")
    )
    assert own == {"rudder": {"gate_min": 0.1, "alpha_max": 5.0, "layer": 26}}
    assert other == {"rudder": {"gate_min": 0.1}}


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (None, True),
        ("llava-hf/llava-1.5-7b-hf", True),
        ("/models/llava-1.5-7b-hf", True),
        ("/models/llava-1.5-7b-hf/", True),
        ("llava-hf/llava-1.5-13b-hf", False),
        ("tiny-llava", False),
    ],
)
def test_the_published_model(model: str | None, same: bool) -> None:
    assert load_table("vhr/chair").is_of(model) == same


def test_no_such_table() -> None:
    with pytest.raises(ValueError, match=r"no published table 'vhr/char' \(did you mean 'vhr/chair'\?\)"):
        load_table("vhr/char")


WHOLE: dict[str, Any] = {
    "source": "a paper",
    "model": "org/model",
    "task": "pope",
    "protocol": "pope.llava",
    "published": dict.fromkeys(CONDITIONS),
    "rows": [{"method": "greedy", "figures": {"accuracy": 80}}],
    "deviations": [],
}


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(WHOLE, sort_keys=False))
    table = Table.read(tmp_path / "a.yaml", "a/pope")
    assert table.rows[0].figures == (Published("accuracy", "", 80.0, 80.0),)
    assert report_lines(table, ["The model is another."]) == [
        "source: a paper",
        "published: ",
        f"not published: {', '.join(CONDITIONS)}",
        "not comparable: The model is another.",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": 1}, "is no table; it must be a mapping with source, model, task, protocol, published"),
        ({"source": ""}, "source is ''; it must be a text"),
        ({"model": None}, "model is None; it must be a text"),
        ({"published": {"data": None}}, "published must be a mapping with data, prompt"),
        ({"deviations": "none"}, "deviations must be a list of sentences"),
        ({"rows": []}, "rows must be a list with method and figures for each"),
        ({"rows": ["greedy"]}, r"rows\[0\] must be a mapping with method, figures and maybe of_model"),
        (
            {"rows": [{"method": {}, "figures": {"F1": 1}}]},
            "method is {}; it must be a name, or",
        ),
        ({"rows": [{"method": "vhr", "figures": {}}]}, "figures must be a mapping from metrics to values"),
        ({"rows": [{"method": "vhr", "figures": {"F1": "high"}}]}, "F1 is 'high'; it must be a number"),
        (
            {"rows": [{"method": "vhr", "figures": {"F1": [2, 1]}}]},
            r"F1 is \[2, 1\]; it must be a number",
        ),
        (
            {"rows": [{"method": "vhr", "figures": {"F1": 1}, "of_model": {"var": {}}}]},
            "of_model is {'var': {}}; it must hold parameters of vhr",
        ),
    ],
)
def test_a_broken_file(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(WHOLE | changes, sort_keys=False))
    with pytest.raises(ValueError, match=f"a.yaml.*{message}"):
        Table.read(tmp_path / "a.yaml", "a/pope")


@pytest.mark.parametrize(
    ("published", "low", "high", "place"),
    [
        ((50, 50), 40, 60, "in"),
        ((40, 40), 40, 60, "in"),
        ((30, 30), 40, 60, "below"),
        ((61, 61), 40, 60, "above"),
        ((30, 41), 40, 60, "in"),
        ((30, 39), 40, 60, "below"),
        ((60, 70), 40, 60, "in"),
        ((50, 50), None, 60, ""),
        ((50, 50), 40, None, ""),
    ],
)
def test_where_a_published_figure_lies(
    published: tuple[float, float], low: float | None, high: float | None, place: str
) -> None:
    line = Line("greedy", Published("F1", "", *published), 50.0, low, high, percent=True)
    assert line.place == place


def outcome(**changes: Any) -> Any:
    """A row of a comparison with one defined and one undefined metric."""
    ones, zeros = np.ones((1, 4)), np.zeros((1, 4))
    estimate = Estimate(0.25, 0.125, 0.5, 0.1, 4, 4, "bootstrap")
    figures = [
        Figure(Metric("CHAIRs", ones, ones, better="lower"), estimate, None, None),
        Figure(Metric("CHAIRi", zeros, zeros, better="lower"), estimate, None, None),
        Figure(Metric("words", ones, ones, percent=False), estimate, None, None),
    ]
    counts = {"samples": 4, "answered": 4} | changes
    return SimpleNamespace(figures=figures, outcome=SimpleNamespace(method="greedy", counts=counts))


def test_published_beside_measured() -> None:
    table = load_table("greedy/chair")
    lines = compared(table, SimpleNamespace(rows=[outcome()]))  # type: ignore[arg-type]
    assert [(each.published.metric, each.measured, each.low, each.high) for each in lines] == [
        ("CHAIRs", 25.0, 12.5, 50.0),
        ("CHAIRi", None, None, None),
        ("recall", None, None, None),
        ("words", 0.25, 0.125, 0.5),
    ]


@pytest.mark.parametrize(
    ("protocol", "model", "limit", "counts", "said"),
    [
        ("chair.512/coco", None, None, {}, []),
        ("chair.512/coco+scorer=lemma", "/a/llava-1.5-7b-hf", None, {}, []),
        (
            "chair.512/coco",
            "tiny-llava",
            None,
            {},
            ["The model is tiny-llava, and the"],
        ),
        (
            "chair.tiny/synthetic",
            None,
            None,
            {},
            ["The data are synthetic scenes, under the"],
        ),
        ("chair.512/custom", None, None, {}, ["The data are not the published ones"]),
        ("chair.512/coco", None, "0.1", {}, ["The samples are limited to 0.1, and the table is of all."]),
        ("chair.512/coco", None, None, {"answered": 3}, ["1 samples have no answer."]),
    ],
)
def test_what_makes_a_run_another_one(
    protocol: str, model: str | None, limit: str | None, counts: dict[str, int], said: list[str]
) -> None:
    comparison: Any = SimpleNamespace(protocol=protocol, rows=[outcome(**counts)])
    found = load_table("greedy/chair").differences(comparison, model=model, limit=limit)
    assert len(found) == len(said)
    assert all(each.startswith(start) for each, start in zip(found, said, strict=True))


def test_tables_lie_in_folders_of_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_directory", lambda: tmp_path)
    (tmp_path / "b").mkdir()
    for name in ("b/pope.yaml", "b/chair.yaml", "note.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(WHOLE, sort_keys=False))
    assert tables() == ["b/chair", "b/pope"]
    assert dataclasses.replace(load_table("b/pope"), name="b/chair") == load_table("b/chair")
