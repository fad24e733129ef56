"""MME: figures of hand-made answers with their units, files of answers, and one job from end to end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vlmfix.evals.mme.parsers import PARSERS
from vlmfix.evals.mme.scorer import score, sum_of
from vlmfix.evals.mme.subtasks import ALL, HALLUCINATION, PERCEPTION
from vlmfix.evals.mme.task import Mme

from tests.support import jobs
from tests.support.outcomes import metrics_of
from vlmfix.evaluation.analysis.intervals import ratio_estimate
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.subset import subset
from vlmfix.evaluation.tasks.base import TaskMetrics
from vlmfix.evaluation.tasks.protocol_files import load_protocol

TWO = [
    ("existence", "A", "yes", "Yes"),
    ("existence", "A", "no", "No."),
    ("existence", "B", "yes", " yes"),
    ("existence", "B", "no", "There is none"),
]
Row = tuple[str, str, str, str | None]


def task(subtasks: str = "all") -> Mme:
    return Mme(DataFolder(), load_protocol("mme.official/custom").with_(subtasks=subtasks))


def asked(rows: list[Row]) -> list[Sample]:
    found = []
    for subtask, image, label, _ in rows:
        id = f"mme/{subtask}/{image}/{1 if label == 'yes' else 2}"
        found.append(Sample(id, f"{subtask}/{image}", None, "?", label, {"split": subtask}))
    return found


def figures(rows: list[Row], subtasks: str = "all") -> TaskMetrics:
    texts = [text for *_, text in rows]
    return metrics_of(task(subtasks), asked(rows), texts, [False] * len(rows))


def value(metrics: list[Metric], name: str, group: str = "") -> float | None:
    """The value of a metric; None if a denominator is zero."""
    [found] = [each for each in metrics if (each.name, each.group) == (name, group)]
    return found.value if found.is_defined else None


def test_one_subtask() -> None:
    metrics = figures(TWO).metrics
    assert (metrics[0].name, metrics[0].group) == ("score", "")
    for group in ("", "existence", "perception, partial", "hallucination, partial"):
        assert value(metrics, "score", group) == 125
        assert value(metrics, "accuracy", group) == 0.75
        assert value(metrics, "accuracy+", group) == 0.5
    assert value(metrics, "missing subtasks") == 13
    assert value(metrics, "unparsed") == 0.25
    assert value(metrics, "yes ratio") == 0.5


def test_sums_that_are_whole() -> None:
    everything: list[Row] = [
        (name, "A", label, label if name != "OCR" else "yes") for name in ALL for label in ("yes", "no")
    ]
    metrics = figures(everything).metrics
    assert value(metrics, "score", "perception") == pytest.approx(9 * 200 + 50)
    assert value(metrics, "score", "cognition") == pytest.approx(800)
    assert value(metrics, "score", "hallucination") == pytest.approx(800)
    assert value(metrics, "score") == pytest.approx(2650)
    assert "missing subtasks" not in {each.name for each in metrics}
    assert value(metrics, "accuracy", "perception") == pytest.approx(0.95)
    few = [row for row in everything if row[0] in HALLUCINATION]
    metrics = figures(few, "hallucination").metrics
    assert value(metrics, "score") == pytest.approx(800)
    assert {each.group for each in metrics} == {"", *HALLUCINATION}


def test_figures_are_those_of_the_scorer() -> None:
    dice = random.Random(1)
    said = ["Yes", "no", "  no", "maybe", "", "Not so", "y"]
    rows: list[Row] = [
        (name, str(image), label, dice.choice([label, *said]))
        for name in PERCEPTION
        for image in range(8)
        for label in ("yes", "no")
    ]
    dice.shuffle(rows)
    found = figures(rows)
    for parser, read in PARSERS.items():
        scores = {}
        for name in PERCEPTION:
            own = [row for row in rows if row[0] == name]
            verdicts = [read(text or "", label) for _, _, label, text in own]  # type: ignore[arg-type]
            scores[name] = score(verdicts, [row[2] for row in own], [row[1] for row in own])  # type: ignore[misc]
            assert value(found.parsers[parser], "score", name) == pytest.approx(scores[name].score)
            assert value(found.parsers[parser], "accuracy+", name) == pytest.approx(scores[name].acc_plus)
        total = sum_of(scores, PERCEPTION).score
        assert value(found.parsers[parser], "score", "perception") == pytest.approx(total)


def test_an_image_with_a_failed_question_is_left_out_of_pairs() -> None:
    rows: list[Row] = [*TWO[:3], ("existence", "B", "no", None)]
    metrics = figures(rows).metrics
    assert value(metrics, "accuracy") == 1
    assert value(metrics, "accuracy+") == 1  # of image A alone
    [pairs] = [each for each in metrics if (each.name, each.group) == ("accuracy+", "existence")]
    assert pairs.wholes.sum() == 1
    nothing = figures([(*row[:3], None) for row in TWO]).metrics
    assert value(nothing, "score") is None


def test_repeats_are_pairs_of_their_own() -> None:
    samples = [sample for sample in asked(TWO[:2]) for _ in range(2)]
    metrics = metrics_of(task(), samples, ["yes", "no", "no", "no"], [False] * 4).metrics
    assert value(metrics, "accuracy+") == 0.5


def test_the_interval_of_a_score_is_clustered_by_image() -> None:
    [found] = [each for each in figures(TWO).metrics if (each.name, each.group) == ("score", "existence")]
    estimate = ratio_estimate(found, np.array([0, 0, 1, 1]))
    assert (estimate.value, estimate.clusters) == (125, 2)
    # scores of the images are 200 and 50, so the error of their mean is 75
    assert estimate.error == pytest.approx(75)


def test_a_limit_keeps_pairs_together() -> None:
    rows: list[Row] = [("count", str(image), label, "") for image in range(9) for label in ("yes", "no")]
    few = subset(asked(rows), 5).samples
    assert len(few) == 4
    assert len({sample.cluster for sample in few}) == 2


def write(folder: Path, name: str = "existence", rows: list[Row] = TWO) -> Path:  # type: ignore[assignment]
    lines = [f"{image}\tIs it so?\t{label.title()}\t{text}\n" for _, image, label, text in rows]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_text("".join(lines))
    return folder


def test_score_of_files(tmp_path: Path) -> None:
    result = jobs.cli("score", "mme", "--data", write(tmp_path))
    assert result.exit_code == 0, result.stderr
    for text in ("125.00", "0.7500", "0.5000", "partial: 13 of 14 missing", "note: missing subtasks"):
        assert text in result.stdout
    document = json.loads(jobs.cli("score", "mme", "--data", tmp_path, "--parser", "all", "--json").stdout)
    assert list(document["scores"]) == list(PARSERS)
    official = document["scores"]["mme_official"]
    assert official["subtasks"]["existence"]["score"] == 125
    assert official["subtasks"]["existence"]["other"] == 1
    assert official["sums"]["total"]["partial"]
    assert len(official["sums"]["perception"]["missing"]) == 9
    assert "cognition" not in official["sums"]
    assert [each["verdict"] for each in document["samples"]] == ["yes", "no", "yes", "unparsed"]


def test_the_official_pairs_are_lines(tmp_path: Path) -> None:
    right: list[Row] = [("existence", image, "yes", "yes") for image in "AB"]
    wrong: list[Row] = [("existence", image, "no", "yes") for image in "AB"]
    write(tmp_path, rows=right + wrong)
    result = jobs.cli("score", "mme", "--data", tmp_path)
    assert "the two lines of an image do not follow each other in existence" in result.stdout
    document = json.loads(jobs.cli("score", "mme", "--data", tmp_path, "--parser", "all", "--json").stdout)
    both = {name: each["subtasks"]["existence"]["both"] for name, each in document["scores"].items()}
    assert both == {"mme_official": 1, "mme": 0, "strict": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{empty}"], "has no file of MME, such as existence.txt"),
        (["--data", "{bare}"], "line 1: no prediction, as in 2 of 2 lines; add it as the fourth column"),
        (
            ["--data", "{good}", "--parser", "official"],
            "parser of mme.official must be one of mme_official, mme",
        ),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "good")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "count.txt").write_text("1.jpg\tIs it?\tYes\n1.jpg\tIs it?\tNo\n")
    places = {name: tmp_path / name for name in ("empty", "bare", "good")}
    assert message in jobs.refused("score", "mme", *(each.format(**places) for each in arguments))


@pytest.mark.slow
def test_a_job(loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.load_once(loaded, monkeypatch)
    options = ("mme", "--data", world, "--method", "greedy", "--limit", 12)
    jobs.evaluate(tmp_path, *options)
    found = jobs.results(tmp_path)
    names = {(each["name"], each["group"]) for each in found["metrics"]}
    assert {("score", ""), ("score", "existence"), ("accuracy+", "color")} <= names
    assert found["counts"]["answered"] == 12
    assert (tmp_path / "report.html").is_file()
    before, lines = jobs.metrics(tmp_path), len(jobs.records(tmp_path))
    jobs.evaluate(tmp_path, *options)
    assert jobs.metrics(tmp_path) == before
    assert len(jobs.records(tmp_path)) == lines == 12


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", write(tmp_path) / "existence.txt"):
        assert "is no folder; give the one that holds existence.txt" in jobs.refused(
            "score", "mme", "--data", path
        )
