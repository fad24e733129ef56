"""CHAIR: figures of hand-made captions, by each variant of the scorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.chair import scorer as scorer
from vlmfix.evals.chair.task import Chair

from tests.support.outcomes import metrics_of
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.tasks.base import Sample, TaskMetrics
from vlmfix.evaluation.tasks.protocol_files import load_protocol

OBJECTS = {1: ["dog", "person"], 2: ["car"], 3: ["bus", "dog"], 4: []}
CAPTIONS = {
    1: "A man walks his dog.",
    2: "A red car on a road.",
    3: "A dog in a bus.",
    4: "A cat on a chair.",
}


def write(folder: Path, objects: dict[int, list[str]] = OBJECTS) -> Path:
    """Instances and captions of four pictures; the caption of the last one names what nobody marked."""
    names = ["person", "car", "bus", "dog", "cat", "chair"]
    pairs = [(image, name) for image, several in objects.items() for name in several]
    images = [{"id": image, "file_name": f"{image}.jpg"} for image in OBJECTS]
    instances = {
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": names.index(name)}
            for number, (image, name) in enumerate(pairs)
        ],
    }
    captions = {
        "images": images,
        "annotations": [
            {"id": image, "image_id": image, "caption": text} for image, text in CAPTIONS.items()
        ],
    }
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    return folder


def task(folder: Path, **changes: Any) -> Chair:
    data = {"synonyms": changes.pop("synonyms")} if "synonyms" in changes else {}
    settings = {"subset": "", "subset_size": 0} | changes
    return Chair(DataFolder.find(folder, **data), load_protocol("chair.512/custom").with_(**settings))


@pytest.fixture
def chair(tmp_path: Path) -> Chair:
    return task(write(tmp_path))


def samples(chair: Chair) -> list[Sample]:
    return chair.samples(Path("unused"))


def scores(chair: Chair, texts: list[str | None], truncated: list[bool] | None = None) -> TaskMetrics:
    return metrics_of(chair, samples(chair), texts, truncated or [False] * len(texts))


def value(metrics: list[Metric], name: str) -> float | None:
    """The value of a metric; None if a denominator is zero."""
    [found] = [each for each in metrics if each.name == name and not each.group]
    return found.value if found.is_defined else None


TEXTS = ["A dog, another dog and a cat.", None, "A dog runs.", "Nothing to see, no chair."]
EXPECTED = {
    "CHAIRs": 1 / 3,
    "CHAIRi": 1 / 5,  # the cat, of dog, dog, cat, dog, chair
    "recall": 3 / 6,  # dog, dog, chair, of dog, person, dog, bus, and cat, chair by the caption
    "precision": 3 / 4,  # of dog, cat, dog, chair
    "F1": 6 / 10,
    "mentions": 5 / 3,
    "words": 15 / 3,
    "truncated": 0,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_figures(name: str, tmp_path: Path) -> None:
    found = scores(task(write(tmp_path), scorer="corrected"), TEXTS)
    assert value(found.metrics, name) == pytest.approx(EXPECTED[name])


def test_samples(chair: Chair) -> None:
    asked = samples(chair)
    assert [each.id for each in asked] == [f"chair/{image:012d}" for image in OBJECTS]
    assert {each.prompt for each in asked} == {"Please describe this image in detail."}
    assert [chair.target(each) for each in asked] == ["dog, person", "car", "bus, dog", "cat, chair"]


def test_failed_samples_add_nothing(chair: Chair) -> None:
    asked = samples(chair)
    without = metrics_of(chair, asked[:1] + asked[2:], TEXTS[:1] + TEXTS[2:], [False] * 3)
    for one, other in zip(scores(chair, TEXTS).metrics, without.metrics, strict=True):
        assert (one.name, one.value) == (other.name, pytest.approx(other.value))


def test_nothing_answered_and_nothing_named(chair: Chair) -> None:
    assert all(not each.is_defined for each in scores(chair, [None] * 4).metrics)
    found = scores(chair, ["", "", "", ""]).metrics
    assert value(found, "CHAIRs") == 0
    assert value(found, "recall") == 0
    assert value(found, "CHAIRi") is None
    assert value(found, "precision") is None


def test_the_official_script_never_finds_a_bus(chair: Chair) -> None:
    found = scores(chair, [None, None, "A bus.", None])
    assert next(iter(found.parsers)) == "official"
    assert value(found.parsers["official"], "mentions") == 0
    assert value(found.parsers["corrected"], "mentions") == 1
    assert value(found.parsers["corrected"], "recall") == 1 / 2
    assert found.metrics[: len(found.parsers["official"])] == found.parsers["official"]


def test_figures_are_those_of_the_scorer(chair: Chair) -> None:
    """The same captions by `vlmfix score` and by `vlmfix eval`."""
    texts = ["A man, a dog and a bus.", "Cars and people.", "Two dogs, two buses, a cat.", "A cat."]
    for variant, metrics in scores(chair, texts).parsers.items():
        truth = chair.truth(variant)
        judged = [scorer.judge(text, image, truth) for text, image in zip(texts, OBJECTS, strict=True)]
        expected = scorer.score(judged)
        found = {each.name: each.value for each in metrics}
        assert found["CHAIRs"] == pytest.approx(expected.chair_s)
        assert found["CHAIRi"] == pytest.approx(expected.chair_i)
        assert found["recall"] == pytest.approx(expected.recall)
        assert found["precision"] == pytest.approx(expected.precision)
        assert found["F1"] == pytest.approx(expected.f1)


@pytest.mark.parametrize(
    ("dropped", "truncated", "wrong"),
    [(True, True, 0), (True, False, 1), (False, True, 1), (False, False, 1)],
)
def test_the_last_sentence_of_a_cut_caption(
    dropped: bool, truncated: bool, wrong: int, tmp_path: Path
) -> None:
    chair = task(write(tmp_path), drop_incomplete=dropped)
    text = "A dog and a man. On the left there is a cat and"
    found = scores(chair, [text, None, None, None], [truncated, False, False, False])
    assert value(found.metrics, "CHAIRs") == wrong
    assert value(found.metrics, "truncated") == truncated
    judgement = chair.judge(samples(chair)[0], text, truncated=truncated)
    assert judgement.value == 1 - wrong
    assert judgement.parsed["not there"] == ["cat"] * wrong


def test_judging_one_caption(chair: Chair) -> None:
    first = samples(chair)[0]
    for text, verdict, points in (
        ("A dog and a man.", "there: dog, person", 1),
        ("A dog, a cat, a car, a cat.", "not there: cat, car", 0),
        ("", "names no object", 1),
    ):
        judgement = chair.judge(first, text, truncated=False)
        assert (judgement.verdict, judgement.value) == (verdict, points)
    assert chair.judge(first, "A cat and a dog.", truncated=False).parsed == {
        "mentions": ["cat", "dog"],
        "sentences": [0, 0],
        "named": ["cat", "dog"],
        "not there": ["cat"],
    }


def test_objects_with_their_errors(chair: Chair) -> None:
    assert scores(chair, TEXTS).objects == {"cat": (1, 1), "chair": (0, 1), "dog": (0, 3)}


def test_words_of_the_user(tmp_path: Path) -> None:
    synonyms = tmp_path / "words.txt"
    synonyms.write_text("person, walker\ncar\nbus\ndog, hound\ncat\nchair")
    chair = task(write(tmp_path), synonyms=synonyms)
    assert chair.judge(samples(chair)[0], "A walker and his hound.", truncated=False).parsed["named"] == [
        "dog",
        "person",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("person\ncar", "has no class for the category 'dog'"),
        ("person,car", "is not a class and its words"),
        ("person, man\ncar, man", "'man' is in the classes"),
    ],
)
def test_what_the_scorer_refuses_is_told_with_the_samples(words: str, message: str, tmp_path: Path) -> None:
    """Not after the first captions were written."""
    synonyms = tmp_path / "words.txt"
    synonyms.write_text(words)
    with pytest.raises(ValueError, match=message):
        samples(task(write(tmp_path), synonyms=synonyms))


def test_a_category_that_no_vocabulary_knows(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "instances.json"
    path.write_text(path.read_text().replace('"dog"', '"hound of hell"'))
    with pytest.raises(ValueError, match="no class for the category 'hound of hell'"):
        samples(task(tmp_path))


def test_a_scorer_whose_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("the variant lemma needs the package nltk")

    monkeypatch.setattr("vlmfix.evals.chair.vocabulary.Lemmatizer", missing)
    with pytest.raises(ImportError, match="needs the package nltk"):
        samples(task(write(tmp_path), scorer="lemma"))
    assert set(scores(task(tmp_path), TEXTS).parsers) == {"official", "corrected"}


def test_hallucinations_by_sentence(tmp_path: Path) -> None:
    chair = task(write(tmp_path))
    captions: list[str | None] = [
        "A dog. And a cat! A car and a person. A chair. A dog?",
        "A cat",
        None,
        None,
    ]
    found = {each.group: each for each in scores(chair, captions).metrics if each.group}
    judged = chair.judge(samples(chair)[0], captions[0] or "", truncated=False).parsed
    assert judged["mentions"] == ["dog", "cat", "car", "person", "chair", "dog"]
    assert judged["sentences"] == [0, 1, 2, 2, 3, 4]
    assert list(found) == ["sentence 1", "sentence 2", "sentence 3", "later sentences"]
    assert {each.name for each in found.values()} == {"CHAIRi"}
    wrong = judged["not there"]
    assert found["sentence 3"].parts[0, 0] == sum(name in wrong for name in ("car", "person"))
    assert found["sentence 3"].wholes[0, 0] == 2
    assert found["later sentences"].wholes[0, 0] == 2
