"""AMBER, discriminative part: its files, figures of hand-made answers, files of answers, and one job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.amber.task import Amber

from tests.support import jobs
from tests.support.outcomes import metrics_of
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import TaskMetrics
from vlmfix.evaluation.tasks.protocol_files import load_protocol

EXISTENCE, STATE = "discriminative-hallucination", "discriminative-attribute-state"
ROWS = [
    *((EXISTENCE, "no", text) for text in ("No", "No", "Yes", "No")),
    *((STATE, "yes", text) for text in ("Yes", "yes", "No")),
    *((STATE, "no", text) for text in ("No", "No", "Yes")),
]
"""Type, what is right, and an answer; the example of the benchmark's rules."""


def write(folder: Path, rows: list[tuple[str, str, str]] = ROWS) -> Path:
    """The files of AMBER with these questions, numbered from 2 on; number 1 is a description."""
    (folder / "data" / "query").mkdir(parents=True)
    queries: list[dict[str, Any]] = [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}]
    annotations: list[dict[str, Any]] = [{"id": 1, "type": "generative", "truth": ["cat"], "hallu": ["dog"]}]
    for number, (kind, truth, _) in enumerate(rows, 2):
        queries.append({"id": number, "image": f"AMBER_{number // 2}.jpg", "query": f"Is it {number}?"})
        annotations.append({"id": number, "type": kind, "truth": truth})
    (folder / "data" / "query" / "query_all.json").write_text(json.dumps(queries))
    (folder / "data" / "annotations.json").write_text(json.dumps(annotations))
    responses = [{"id": number, "response": text} for number, (*_, text) in enumerate(rows, 2)]
    (folder / "responses.json").write_text(json.dumps(responses))
    return folder


def task(root: Path, parser: str = "strict") -> Amber:
    return Amber(DataFolder.find(root), load_protocol("amber.yes-no/custom").with_(parser=parser))


def figures(
    root: Path, rows: list[tuple[str, str, str]] = ROWS, parser: str = "amber_official"
) -> TaskMetrics:
    own = task(write(root, rows), parser)
    return metrics_of(own, own.samples(root), [text for *_, text in rows], [False] * len(rows))


def value(metrics: list[Metric], name: str, group: str = "") -> float | None:
    """The value of a metric; None if a denominator is zero."""
    [found] = [each for each in metrics if (each.name, each.group) == (name, group)]
    return found.value if found.is_defined else None


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("existence", (0.75, 1, 0.75, 0.857143)),
        ("attribute", (0.5, 0.666667, 0.666667, 0.666667)),
        ("", (0.6, 0.833333, 0.714286, 0.769231)),
    ],
)
def test_exact_figures(group: str, expected: tuple[float, ...], tmp_path: Path) -> None:
    metrics = figures(tmp_path).metrics
    names = ("accuracy", "precision of no", "recall of no", "F1 of no")
    assert [value(metrics, name, group) for name in names] == pytest.approx(expected, abs=1e-6)
    assert (metrics[0].name, metrics[0].group) == ("accuracy", "")


def test_parsers_stand_side_by_side(tmp_path: Path) -> None:
    found = figures(tmp_path)
    assert list(found.parsers) == ["amber_official", "strict", "vlmevalkit"]
    assert value(found.parsers["strict"], "accuracy", "attribute") == pytest.approx(4 / 6)  # "yes" counts
    assert found.unparsed == 1
    assert value(found.metrics, "recall of yes", "state") == pytest.approx(1 / 3)
    assert value(found.metrics, "false-yes rate", "existence") == 0.25
    places = {(each.name, each.group) for each in found.metrics}
    assert ("recall of yes", "existence") not in places  # nothing there is right with yes
    assert not {group for _, group in places} & {"number", "action", "relation"}


def test_groups_of_types(tmp_path: Path) -> None:
    kinds = ("-attribute-state", "-attribute-number", "-attribute-action", "-hallucination", "-relation")
    rows = [(f"discriminative{kind}", "no", "No") for kind in kinds] + [("relation", "no", "Yes")]
    metrics = figures(tmp_path, rows).metrics
    sizes = {each.group: each.wholes.sum() for each in metrics if each.name == "accuracy"}
    assert sizes == {
        "": 6,
        "existence": 1,
        "attribute": 3,
        "state": 1,
        "number": 1,
        "action": 1,
        "relation": 2,
    }
    assert value(metrics, "accuracy", "relation") == 0.5


def test_empty_denominators(tmp_path: Path) -> None:
    metrics = figures(tmp_path, [(EXISTENCE, "no", "Yes"), (STATE, "yes", "Yes")]).metrics
    assert value(metrics, "precision of no") is None
    assert value(metrics, "F1 of no") == 0
    assert value(metrics, "recall of no", "state") is None
    assert value(metrics, "F1 of no", "state") is None


def test_failed_samples_add_nothing(tmp_path: Path) -> None:
    own = task(write(tmp_path))
    samples = own.samples(tmp_path)
    found = metrics_of(own, samples, [None, *("No" for _ in samples[1:])], [False] * len(samples))
    assert value(found.metrics, "accuracy") == pytest.approx(6 / 9)
    assert value(found.metrics, "recall of no", "existence") == 1


def test_samples(tmp_path: Path) -> None:
    own = task(write(tmp_path))
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "AMBER_1.jpg").touch()
    first, *_, last = samples = own.samples(tmp_path)
    assert len(samples) == 10
    assert (first.id, first.target, first.cluster) == ("amber/00002", "no", "AMBER_1.jpg")
    assert first.image == tmp_path / "image" / "AMBER_1.jpg"
    assert first.prompt == "Is it 2? Please answer yes or no."
    assert last.meta == {"id": 11, "groups": ["attribute", "state"], "question": "Is it 11?"}
    assert {role: used["rows"] for role, used in own.folder.used.items()} == {
        "queries": 10,
        "annotations": 11,
    }


def test_the_file_of_the_part_comes_first(tmp_path: Path) -> None:
    write(tmp_path)
    query = [{"id": 5, "image": "AMBER_9.jpg", "query": "Is it so?"}]
    (tmp_path / "data" / "query" / "query_discriminative.json").write_text(json.dumps(query))
    [sample] = task(tmp_path).samples(tmp_path)
    assert sample.id == "amber/00005"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": "maybe"}, 'record 3: the label is "maybe"; it must be yes or no'),
        (
            {"type": "discriminative-color"},
            "record 3: the type is 'discriminative-color'; it must be generative",
        ),
        ({"type": ""}, "record 3: the type is empty; it must be a text"),
        ({"id": 4}, "record 4: the id 4 comes twice"),
        ({"id": 99}, r"has no annotation of 1 queries of .* \(3\); give both files of the same release"),
    ],
)
def test_wrong_annotations(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path) / "data" / "annotations.json"
    content = json.loads(path.read_text())
    content[2] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        task(tmp_path).samples(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has no \*\*/query_discriminative.json or \*\*/query_all.json"
    ):
        task(tmp_path).samples(tmp_path)
    write(tmp_path)
    path = tmp_path / "data" / "query" / "query_all.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    with pytest.raises(
        ValueError, match="has no queries of the discriminative part; give the file of this part"
    ):
        task(tmp_path).samples(tmp_path)


def score(root: Path, *options: str | Path) -> Any:
    return jobs.cli("score", "amber", "--data", root, "--answers", root / "responses.json", *options)


def test_score_of_files(tmp_path: Path) -> None:
    result = score(write(tmp_path), "--parser", "amber_official")
    assert result.exit_code == 0, result.stderr
    for text in ("85.7", "66.6", "83.3", "71.4", "76.9"):
        assert text in result.stdout
    document = json.loads(score(tmp_path, "--parser", "amber_official", "--json").stdout)
    assert document["official"]["all"] == {"accuracy": 60.0, "precision": 83.3, "recall": 71.4, "f1": 76.9}
    assert document["official"]["state"] == document["official"]["attribute"]
    assert set(document["files"]) >= {"answers_sha256", "queries_sha256", "annotations_sha256"}
    assert "official" not in json.loads(score(tmp_path, "--json").stdout)


def test_one_file_for_both_parts(tmp_path: Path) -> None:
    path = write(tmp_path) / "responses.json"
    path.write_text(json.dumps([{"id": 1, "response": "A cat."}, *json.loads(path.read_text())]))
    result = score(tmp_path)
    assert "note: 1 answers to queries of the other part of AMBER, left out" in result.stdout


def test_answers_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path) / "responses.json"
    answers = json.loads(path.read_text())
    path.write_text(json.dumps([*answers[1:], {"id": 77, "response": "Yes"}]))
    options = ("score", "amber", "--data", tmp_path, "--answers", path)
    said = jobs.refused(*options)
    assert "1 questions without an answer (2); 1 answers with an unknown id (77)" in said
    result = jobs.cli(*options, "--allow-partial")
    assert "answered: 90.0% of 10 queries" in result.stdout
    assert "parser of amber.yes-no must be one of" in jobs.refused(*options, "--parser", "official")


def test_synthetic_scenes(world: Path) -> None:
    own = Amber(DataFolder.find(world), load_protocol("amber.tiny/synthetic"))
    samples: list[Sample] = own.samples(world)
    assert len({sample.id for sample in samples}) == len(samples)
    assert {sample.meta["groups"][-1] for sample in samples} == {"existence", "state", "number", "relation"}
    targets = [sample.target for sample in samples if sample.meta["groups"] == ["existence"]]
    assert targets == ["no"] * 6


@pytest.mark.slow
def test_a_job(loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.load_once(loaded, monkeypatch)
    options = ("amber", "--data", world, "--method", "greedy", "--limit", 12)
    jobs.evaluate(tmp_path, *options)
    found = jobs.results(tmp_path)
    assert {("accuracy", ""), ("F1 of no", "attribute")} <= {
        (each["name"], each["group"]) for each in found["metrics"]
    }
    assert found["counts"]["answered"] == 12
    assert (tmp_path / "report.html").is_file()
    before = jobs.metrics(tmp_path)
    jobs.evaluate(tmp_path, *options)
    assert jobs.metrics(tmp_path) == before
    assert len(jobs.records(tmp_path)) == 12
