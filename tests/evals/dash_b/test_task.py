"""DASH-B: its lists and scenes as questions, and the figures of hand-made answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vlmfix.evals.dash_b.metrics import harmonic_estimate
from vlmfix.evals.dash_b.parsers import PARSERS
from vlmfix.evals.dash_b.task import DashB

from tests.support import jobs
from tests.support.outcomes import metrics_of
from vlmfix.evaluation.analysis.intervals import ratio_estimate
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import percentile_estimate
from vlmfix.evaluation.datasets import write_coco
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import load_protocol

NEG = {"s1": {"cup": ["1.png", "2.png"]}, "s2": {"tie": ["3.png"]}}
POS = {"s1": {"cup": ["1.jpg", "2.jpg"]}, "s2": {"tie": ["1.jpg"]}}


def lists(folder: Path, neg: Any = NEG, pos: Any = POS) -> Path:
    """A folder with the two lists, without pictures."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for sign, content in (("neg", neg), ("pos", pos)):
        (folder / "images" / f"dash_benchmark_{sign}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def task(folder: Path, protocol: str = "dash_b.published/custom") -> DashB:
    return DashB(DataFolder.find(folder), load_protocol(protocol))


def figures(metrics: list[Metric], group: str = "") -> dict[str, float]:
    return {each.name: round(each.value, 6) for each in metrics if each.group == group and each.is_defined}


def test_parsers() -> None:
    said = ["No.", "yes", "Nope", "Yes, a cup", "no", "", "Yes"]
    right = ["no", "yes", "no", "yes", "no", None, "yes"]
    for parser in PARSERS.values():
        assert [parser(text, "yes") for text in said] == right
    assert PARSERS["substring_yes"]("There are not two eyes", "no") == "yes"
    assert PARSERS["substring_yes"]("I cannot tell", "yes") == "no"


@pytest.mark.parametrize("parser", PARSERS)
def test_figures_of_the_spec(parser: str, tmp_path: Path) -> None:
    labels = ["no", "no", "no", "yes", "yes", "yes", "yes"]
    said: list[str | None] = ["No.", "yes", "Nope", "Yes, a cup", "no", "", "Yes"]
    asked = [
        Sample(f"{number}", "cup", None, "?", label, {"object": "cup", "stratum": "s"})
        for number, label in enumerate(labels)
    ]
    own = DashB(DataFolder(), load_protocol("dash_b.published/custom").with_(parser=parser))
    found = metrics_of(own, asked, said, [False] * 7)
    assert figures(found.metrics) == {
        "accuracy": 0.571429,
        "TNR": 0.666667,
        "TPR": 0.5,
        "macro TNR": 0.666667,
        "objects with TNR 0": 0,
        "false-yes rate": 0.333333,
        "F1": 0.571429,
        "precision": 0.666667,
        "yes ratio": 0.428571,
        "unparsed": 0.142857,
        "words": 1.142857,
        "truncated": 0,
    }
    main = {each.name: each for each in found.metrics}
    harmonic = harmonic_estimate(main["TNR"], main["TPR"], np.arange(7))
    assert round(harmonic.value, 6) == 0.571429
    assert found.unparsed == 1


def test_samples_of_the_lists(tmp_path: Path) -> None:
    own = task(lists(tmp_path))
    samples = own.samples(tmp_path)
    assert [sample.id for sample in samples] == sorted(sample.id for sample in samples)
    assert {"dash_b/pos/s1/cup/1.jpg", "dash_b/pos/s2/tie/1.jpg"} < {sample.id for sample in samples}
    first = samples[0]
    assert (first.id, first.target, first.cluster) == ("dash_b/neg/s1/cup/1.png", "no", "cup")
    assert first.image == tmp_path / "images" / "neg" / "s1" / "cup" / "1.png"
    assert first.prompt == "Can you see a cup in this image? Please answer only with yes or no."
    assert {role: used["rows"] for role, used in own.folder.used.items()} == {
        "dash_b neg": 3,
        "dash_b pos": 3,
    }


def test_objects_stay_as_they_are_spelt(tmp_path: Path) -> None:
    content = {"objects_365_100": {"Umbrella": ["1.png"]}}
    folder = lists(tmp_path, content, content)
    assert task(folder).samples(tmp_path)[0].prompt.startswith("Can you see a Umbrella in this image? ")


def test_figures_of_the_example(tmp_path: Path) -> None:
    own = task(lists(tmp_path))
    samples = own.samples(tmp_path)
    wrong = ("dash_b/neg/s1/cup/1.png", "dash_b/neg/s2/tie/3.png")
    said: list[str | None] = [
        "yes" if sample.target == "yes" or sample.id in wrong else "no" for sample in samples
    ]
    found = metrics_of(own, samples, said, [False] * 6)
    assert figures(found.metrics)["TNR"] == 0.333333
    assert figures(found.metrics)["TPR"] == 1
    assert figures(found.metrics)["accuracy"] == 0.666667
    assert figures(found.metrics)["macro TNR"] == 0.25  # 1 of 2 cups, 0 of 1 tie
    assert figures(found.metrics)["objects with TNR 0"] == 0.5
    assert figures(found.metrics, "s1") == {"accuracy": 0.75, "TNR": 0.5, "TPR": 1}
    assert figures(found.metrics, "s2") == {"accuracy": 0.5, "TNR": 0, "TPR": 1}
    assert found.objects == {"cup": (1, 4), "tie": (1, 2)}
    main = {each.name: each for each in found.metrics if not each.group}
    clusters = np.unique([sample.cluster for sample in samples], return_inverse=True)[1]
    assert round(harmonic_estimate(main["TNR"], main["TPR"], clusters).value, 6) == 0.5
    estimate = ratio_estimate(main["accuracy"], clusters)
    assert (estimate.clusters, round(estimate.error or 0, 6)) == (2, 0.111111)


def test_failed_samples_add_nothing(tmp_path: Path) -> None:
    own = task(lists(tmp_path))
    samples = own.samples(tmp_path)
    said: list[str | None] = ["no" if sample.target == "no" else None for sample in samples]
    found = {
        each.name: each for each in metrics_of(own, samples, said, [False] * 6).metrics if not each.group
    }
    assert (found["accuracy"].value, found["macro TNR"].value, found["TPR"].is_defined) == (1, 1, False)
    said = [None if sample.meta["object"] == "tie" else "yes" for sample in samples]
    found = {
        each.name: each for each in metrics_of(own, samples, said, [False] * 6).metrics if not each.group
    }
    assert found["objects with TNR 0"].value == 1
    assert found["objects with TNR 0"].wholes.sum() == 1


def test_repeats_are_counted_one_by_one(tmp_path: Path) -> None:
    own = task(lists(tmp_path))
    [first, *_] = own.samples(tmp_path)
    found = metrics_of(own, [first, first], ["yes", "no"], [False, False])
    [never] = [each for each in found.metrics if each.name == "objects with TNR 0"]
    assert (never.value, never.wholes.sum()) == (0.5, 2)


def test_constant_answers(tmp_path: Path) -> None:
    own = task(lists(tmp_path))
    samples = own.samples(tmp_path)
    for word, tnr, tpr in (("yes", 0, 1), ("no", 1, 0)):
        found = metrics_of(own, samples, [word] * 6, [False] * 6).metrics
        main = {each.name: each for each in found if not each.group}
        assert (main["accuracy"].value, main["TNR"].value, main["TPR"].value) == (0.5, tnr, tpr)
        harmonic = harmonic_estimate(main["TNR"], main["TPR"], np.array([0, 0, 0, 1, 1, 1]))
        assert (harmonic.value, harmonic.source) == (0, "bootstrap")
    found = metrics_of(own, samples, [""] * 6, [False] * 6).metrics
    main = {each.name: each for each in found if not each.group}
    assert harmonic_estimate(main["TNR"], main["TPR"], np.arange(6)).source == "undefined"


def test_the_interval_of_the_harmonic_mean() -> None:
    """Of two clusters, each resample is one of three pairs."""
    is_no = np.array([1, 1, 0, 0, 1, 1, 0, 0], dtype=float)
    tnr = Metric("TNR", np.array([[1, 1, 0, 0, 0, 1, 0, 0]], dtype=float), is_no[None])
    tpr = Metric("TPR", np.array([[0, 0, 1, 1, 0, 0, 1, 0]], dtype=float), (1 - is_no)[None])
    found = harmonic_estimate(tnr, tpr, np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    expected = percentile_estimate(0.75, np.repeat([1, 0.75, 0.5], [25, 50, 25]), samples=8, clusters=2)
    assert (found.value, found.low, found.high) == (0.75, expected.low, expected.high)
    assert (found.samples, found.clusters, found.source) == (8, 2, "bootstrap")


@pytest.mark.parametrize(
    ("neg", "pos", "message"),
    [
        ([], POS, r"the list is \[\]; it must be an object with objects by source"),
        ({"s1": ["1.png"]}, POS, r's1 is \["1.png"\]; it must be an object with file names by object'),
        ({"s1": {"cup": [1]}}, POS, r"s1/cup is \[1\]; it must be a list of file names"),
        ({"s1": {"cup": ["1.png", "1.png"]}}, POS, "s1/cup has 1.png twice"),
        (
            NEG,
            {"s1": NEG["s1"]},
            r"dash_benchmark_neg.json: the other list lacks 1 of its objects \(s2/tie\)",
        ),
        (
            {**NEG, "s3": {"cup": ["9.png"]}},
            {**POS, "s3": {"cup": ["9.jpg"]}},
            "'cup' is listed under s1 and s3",
        ),
    ],
)
def test_lists_that_are_not(neg: Any, pos: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        task(lists(tmp_path, neg, pos)).samples(tmp_path)


def test_a_list_is_missing(tmp_path: Path) -> None:
    (lists(tmp_path) / "images" / "dash_benchmark_pos.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no images/dash_benchmark_pos.json or dash_benchmark_pos"
    ):
        task(tmp_path).samples(tmp_path)


def test_samples_of_a_data_set(tmp_path: Path) -> None:
    row = {
        "image_path": "1.jpg",
        "question": "Can you see a orange in this image? Please answer only with yes or no.",
        "answer": "no",
        "question_id": 7,
        "dataset": "coco",
    }
    columns = {"image": "image_path", "question": "question", "answer": "answer", "id": "question_id"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    data = HubData(str(tmp_path / "rows.jsonl"), "test", {**columns, "group": "dataset"})
    [sample] = DashB(data, load_protocol("dash_b.published/custom")).samples(tmp_path)
    assert (sample.id, sample.cluster, sample.target) == ("dash_b/neg/coco/orange/7", "orange", "no")
    assert sample.prompt == row["question"]
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "question": "A cup?"}), encoding="utf-8")
    with pytest.raises(ValueError, match='row 1: the question is "A cup\\?"; it must be DASH-B\'s'):
        DashB(data, load_protocol("dash_b.published/custom")).samples(tmp_path)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("dash_b") / "scenes", count=60, seed=77)


def test_scenes_with_the_partner_alone(scenes: Path, tmp_path: Path) -> None:
    own = task(scenes, "dash_b.tiny/synthetic")
    samples = own.samples(tmp_path)
    assert samples
    instances = own.folder.read_instances("dash_b")
    there = {instances.file_names[id]: names for id, names in instances.objects.items()}
    partners = {"fork": "knife", "tv": "remote", "sink": "toilet", "dog": "frisbee"}
    for sample in samples:
        name, objects = sample.meta["object"], there[sample.id.rpartition("/")[2]]
        assert (name in objects) == (sample.target == "yes")
        assert sample.target == "yes" or partners.get(name, name) in objects or name not in partners
        assert sample.image is not None
        assert sample.image.is_file()
    for name in {sample.cluster for sample in samples}:
        labels = [sample.target for sample in samples if sample.cluster == name]
        assert labels.count("yes") == labels.count("no") > 0
    assert any(sample.prompt == "Can you see an umbrella in the image?" for sample in samples)


def test_a_job(
    scenes: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs.load_once(loaded, monkeypatch)
    arguments = ("dash_b", "--data", scenes, "--limit", 12, "--method", "greedy")
    jobs.evaluate(tmp_path, *arguments)
    before = jobs.metrics(tmp_path)
    found = jobs.results(tmp_path)
    [task] = jobs.read(tmp_path / "metrics.json")["tasks"]
    assert task["clusters"] == "object"
    assert task["subset"].endswith(" objects, 12 samples")
    names = [each["name"] for each in found["metrics"]]
    assert names[:3] == ["accuracy", "TNR", "TPR"]
    assert set(found["parsers"]) == {"strict", "substring_yes"}
    assert (tmp_path / "report.html").is_file()
    count = len(jobs.records(tmp_path))
    assert count > 0
    assert found["counts"]["failed"] == 0
    jobs.evaluate(tmp_path, *arguments)
    assert len(jobs.records(tmp_path)) == count
    assert jobs.metrics(tmp_path) == before
