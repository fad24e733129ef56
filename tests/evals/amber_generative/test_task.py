"""AMBER, generative part: its files, figures of hand-made descriptions, files of answers, and one job."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.amber_generative import dataset
from vlmfix.evals.amber_generative.language import Spacy
from vlmfix.evals.amber_generative.task import AmberGenerative

from tests.support import jobs
from tests.support.outcomes import metrics_of
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.tasks.base import TaskMetrics
from vlmfix.evaluation.tasks.protocol_files import load_protocol

RELATION = {"person": ["man"], "tree": ["forest"], "dog": ["puppy"], "cat": [], "sky": [], "bench": []}
ITEMS = [(["person", "tree", "sky"], ["dog", "cat"]), (["bench", "sky"], ["person", "dog"])]
"""What is there, and what might be expected."""
TEXTS = ["A man by a tree. A dog and a puppy are near the tree.", "A bench and the picture of a sky."]


class Fake:
    """Every word is a noun; a puppy is much like a tree."""

    name = "a fake"

    def nouns(self, text: str) -> list[str]:
        return re.findall(r"\w+", text)

    def similarity(self, one: str, other: str) -> float:
        return 0.9 if {one, other} == {"puppy", "tree"} else float(one == other)


@pytest.fixture(autouse=True)
def _no_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "spacy_language", Fake)


def write(folder: Path) -> Path:
    """The files of AMBER with two pictures; number 3 is a question."""
    (folder / "query").mkdir(parents=True)
    queries = [
        {"id": number, "image": f"AMBER_{number}.jpg", "query": "Describe this image."} for number in (1, 2)
    ]
    annotations: list[dict[str, Any]] = [
        {"id": number, "type": "generative", "truth": truth, "hallu": hallu}
        for number, (truth, hallu) in enumerate(ITEMS, 1)
    ]
    annotations.append({"id": 3, "type": "relation", "truth": "yes"})
    (folder / "query" / "query_generative.json").write_text(json.dumps(queries))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "relation.json").write_text(json.dumps(RELATION))
    (folder / "safe_words.txt").write_text("picture\nbackground\n")
    responses = [{"id": number, "response": text} for number, text in enumerate(TEXTS, 1)]
    (folder / "responses.json").write_text(json.dumps(responses))
    return folder


def task(root: Path, scorer: str = "corrected") -> AmberGenerative:
    protocol = load_protocol("amber_generative.512/custom").with_(scorer=scorer)
    return AmberGenerative(DataFolder.find(root), protocol)


def figures(root: Path, texts: list[str | None], scorer: str = "corrected") -> TaskMetrics:
    own = task(write(root), scorer)
    return metrics_of(own, own.samples(root), texts, [False] * len(texts))


def value(metrics: list[Metric], name: str) -> float | None:
    """The value of a metric; None if a denominator is zero."""
    [found] = [each for each in metrics if each.name == name]
    return found.value if found.is_defined else None


def test_figures_of_both_variants(tmp_path: Path) -> None:
    found = figures(tmp_path, list(TEXTS))
    # nouns of the vocabulary: man tree dog puppy tree, and bench sky
    assert list(found.parsers) == ["corrected", "official"]
    corrected, official = found.parsers["corrected"], found.parsers["official"]
    assert found.metrics[: len(corrected)] == corrected
    assert [each.name for each in found.metrics][-2:] == ["words", "truncated"]
    assert value(corrected, "CHAIR") == pytest.approx(2 / 7)  # dog and puppy
    assert value(official, "CHAIR") == pytest.approx(1 / 7)  # puppy is like tree
    assert value(corrected, "Cover") == value(official, "Cover") == pytest.approx(4 / 5)
    assert value(corrected, "Cog") == pytest.approx(1 / 4)
    assert value(corrected, "Hal") == pytest.approx(1 / 2)
    assert value(corrected, "nouns") == 3.5
    assert value(official, "words") == 11
    assert found.objects["puppy"] == (1, 1)
    assert found.objects["tree"] == (0, 2)


def test_the_scorer_of_the_protocol_comes_first(tmp_path: Path) -> None:
    found = figures(tmp_path, list(TEXTS), "official")
    assert list(found.parsers) == ["official", "corrected"]
    assert value(found.metrics, "CHAIR") == pytest.approx(1 / 7)


def test_empty_descriptions_are_clean_and_cover_nothing(tmp_path: Path) -> None:
    metrics = figures(tmp_path, ["", "nothing to see"]).metrics
    assert value(metrics, "Hal") == 0
    assert value(metrics, "Cover") == 0
    assert value(metrics, "CHAIR") is None


def test_failed_samples_add_nothing(tmp_path: Path) -> None:
    metrics = figures(tmp_path, [TEXTS[0], None]).metrics
    assert value(metrics, "Cover") == pytest.approx(2 / 3)
    assert value(metrics, "Cog") == pytest.approx(1 / 2)
    assert value(metrics, "Hal") == 1


@pytest.mark.parametrize(
    ("text", "verdict", "points"),
    [
        ("man cat cat", "not there: cat", 0),
        ("man sky man", "there: man, sky", 1),
        ("Man", "names no object", 1),  # the case counts
        ("", "names no object", 1),
    ],
)
def test_judging_one_description(text: str, verdict: str, points: float, tmp_path: Path) -> None:
    own = task(write(tmp_path))
    first = own.samples(tmp_path)[0]
    score = own.judge(first, text, truncated=False)
    assert (score.verdict, score.value) == (verdict, points)
    assert json.loads(json.dumps(score.parsed)) == score.parsed
    assert own.target(first) == "person, tree, sky"


def test_samples(tmp_path: Path) -> None:
    own = task(write(tmp_path))
    first, second = own.samples(tmp_path)
    assert (first.id, first.cluster, first.prompt) == (
        "amber_generative/00001",
        "AMBER_1.jpg",
        "Describe this image.",
    )
    assert (second.target, second.meta) == (["bench", "sky"], {"id": 2, "hallu": ["person", "dog"]})
    assert second.image == tmp_path / "image" / "AMBER_2.jpg"
    assert set(own.folder.used) == {"queries", "annotations", "relation", "safe words", "language"}
    assert own.folder.used["language"] == {"name": "a fake"}


def test_words_without_an_entry_are_told(tmp_path: Path) -> None:
    (write(tmp_path) / "relation.json").write_text(json.dumps({"person": ["man"], "cat": []}))
    with pytest.warns(
        UserWarning, match=r"4 annotated words are not in relation.json \(tree, sky, dog, ...\)"
    ):
        task(tmp_path).samples(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("relation.json", "[]", "must be an object from words to lists of words"),
        ("relation.json", '{"cat": "dog"}', "'cat': \"dog\"; it must be a list of words"),
        ("annotations.json", '[{"id": 1, "type": "generative", "truth": ["cat"]}]', "no hallu"),
        (
            "annotations.json",
            '[{"id": 1, "type": "generative", "truth": "yes", "hallu": []}]',
            "list of words",
        ),
    ],
)
def test_broken_files(file: str, text: str, message: str, tmp_path: Path) -> None:
    query = write(tmp_path) / "query" / "query_generative.json"
    query.write_text(json.dumps(json.loads(query.read_text())[:1]))
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        task(tmp_path).samples(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    (write(tmp_path) / "safe_words.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no \*\*/safe_words.txt, which amber_generative needs"):
        task(tmp_path).samples(tmp_path)


def score(root: Path, *options: str) -> Any:
    return jobs.cli(
        "score", "amber_generative", "--data", root, "--answers", root / "responses.json", *options
    )


def test_score_of_files(tmp_path: Path) -> None:
    result = score(write(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert "nouns and similarity: a fake" in result.stdout
    document = json.loads(score(tmp_path, "--json").stdout)
    assert document["official"] == {"chair": 14.3, "cover": 80.0, "hal": 50.0, "cog": 25.0}
    assert document["language"] == "a fake"
    [method] = document["tasks"][0]["methods"]
    assert method["metrics"][0]["name"] == "CHAIR"
    assert [each["verdict"] for each in document["samples"]] == ["not there: dog, puppy", "there: bench, sky"]


def test_answers_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path) / "responses.json"
    answers = json.loads(path.read_text())
    path.write_text(json.dumps([answers[0], {"id": 3, "response": "Yes"}]))
    options = ("score", "amber_generative", "--data", tmp_path, "--answers", path)
    assert "1 questions without an answer (2)" in jobs.refused(*options)
    result = jobs.cli(*options, "--allow-partial")
    assert "answered: 50.0% of 2 queries" in result.stdout
    assert "1 answers to queries of the other part of AMBER, left out" in result.stdout


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "spacy_language", Spacy)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    root = write(tmp_path / "data")
    said = jobs.refused("score", "amber_generative", "--data", root, "--answers", root / "responses.json")
    assert "the descriptions of AMBER need spaCy with en_core_web_lg; pip install" in said


def test_synthetic_scenes(world: Path) -> None:
    own = AmberGenerative(DataFolder.find(world), load_protocol("amber_generative.tiny/synthetic"))
    samples = own.samples(world)
    assert len(samples) == 6
    for sample in samples:
        assert not set(sample.target) & set(sample.meta["hallu"])
    name = own.folder.used["language"]["name"]
    assert name == "plain lookup in the categories of synthetic scenes, no tagger and no vectors"
    there = samples[0].target
    said = own.judge(samples[0], f"There is a {there[0]} and there are two mice.", truncated=False)
    assert said.parsed["nouns"] == [there[0], "mouse"]
    assert said.parsed["corrected"]["covered"] == [there[0], *(["mouse"] if "mouse" in there else [])]


@pytest.mark.slow
def test_a_job(loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.load_once(loaded, monkeypatch)
    short = ("--protocol", "amber_generative.tiny+max_new_tokens=12", "--limit", 3)
    options = ("amber_generative", "--data", world, "--method", "greedy", *short)
    jobs.evaluate(tmp_path, *options)
    found = jobs.results(tmp_path)
    assert {"CHAIR", "Cover", "Hal", "Cog", "words"} <= {each["name"] for each in found["metrics"]}
    assert found["counts"]["answered"] == 3
    assert (tmp_path / "report.html").is_file()
    before = jobs.metrics(tmp_path)
    jobs.evaluate(tmp_path, *options)
    assert jobs.metrics(tmp_path) == before
    assert len(jobs.records(tmp_path)) == 3
