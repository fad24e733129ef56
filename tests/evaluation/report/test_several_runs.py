"""Methods of several runs side by side."""

from __future__ import annotations

from pathlib import Path

from tests.support import outcomes
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.report.several_runs import labelled_by_run


def test_labels_that_collide_get_the_name_of_the_run() -> None:
    runs = {
        Path("runs/a"): [
            outcomes.captions(baseline_of=""),
            outcomes.captions("var", care=0.8),
            outcomes.captions("cut(var)", care=0.7, baseline_of="var"),
            outcomes.yes_no(),
        ],
        Path("runs/b"): [
            outcomes.captions(baseline_of=""),
            outcomes.captions("var", care=0.6),
            outcomes.captions("vcd", care=0.9),
        ],
    }
    found = labelled_by_run(runs)
    chair = [(each.method, each.baseline_of) for each in found if each.task == "chair"]
    assert chair == [
        ("greedy (a)", ""),
        ("var (a)", None),
        ("cut(var)", "var (a)"),
        ("greedy (b)", ""),
        ("var (b)", None),
        ("vcd", None),
    ]
    assert [each.method for each in found if each.task == "pope"] == ["greedy"]
    captions, questions = compare(found)
    assert [row.outcome.method for row in captions.rows] == [method for method, _ in chair]
    assert len(questions.rows) == 1
    best = {row.outcome.method: row.best.baseline for row in captions.rows if row.best}
    assert best["var (a)"] == "cut(var)"
    assert best["vcd"] == "greedy (a)"


def test_folders_of_the_same_name_are_told_apart() -> None:
    runs = {Path(f"{place}/run"): [outcomes.captions()] for place in ("x", "y")}
    assert [each.method for each in labelled_by_run(runs)] == ["greedy (x/run)", "greedy (y/run)"]


def test_one_run_keeps_its_labels() -> None:
    several = outcomes.two_tasks()
    assert [each.method for each in labelled_by_run({Path("a"): several})] == [
        each.method for each in several
    ]
