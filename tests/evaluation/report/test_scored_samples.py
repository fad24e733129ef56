"""Answers made elsewhere as figures: which ways to read them are shown, in tables that fit a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from vlmfix.evals.pope.task import Pope

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.report.scored_samples import score_samples
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS

TEXTS = ["Yes", "no", "maybe", None]


def scored(parsers: list[str] | None = None) -> ScoredFiles:
    samples = [
        Sample(f"pope/custom/{split}/{number}", f"{number}", None, "Is it?", target, {"split": split})
        for number, (split, target) in enumerate(
            [("random", "yes"), ("random", "no"), ("popular", "yes"), ("popular", "no")]
        )
    ]
    task = Pope(DataFolder(), load_protocol("pope.llava/custom").with_(parser="strict"))
    return score_samples(task, samples, TEXTS, parsers=parsers, notes=["a note"], files={"answers": "a.json"})


def test_the_ways_that_are_asked_for() -> None:
    both = scored(["vcd", "strict"])
    [method] = both.document["tasks"][0]["methods"]
    assert list(method["parsers"]) == ["strict", "vcd"]
    assert list(scored().document["tasks"][0]["methods"][0]["parsers"]) == sorted(
        PARSERS, key=lambda name: name != "strict"
    )
    assert (both.document["files"], both.notes) == ({"answers": "a.json"}, ["a note"])
    by_id = [each["verdict"] for each in both.document["samples"]]
    assert by_id == ["unparsed", "not answered", "yes", "no"]


def test_tables_fit_a_narrow_terminal() -> None:
    written = io.StringIO()
    console = Console(file=written, width=80)
    tables = scored(["strict"]).tables
    for table in tables:
        console.print(table)
    text = written.getvalue()
    assert "…" not in text
    for name in ("accuracy", "F1", "precision", "recall", "unparsed", "random", "popular"):
        assert name in text
    assert len(tables) > 1
    assert "continued" in text
