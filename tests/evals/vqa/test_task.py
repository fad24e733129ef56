"""VQA: accuracies of hand-made answers, by each mode and type of answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vlmfix.evals.vqa import task as module
from vlmfix.evals.vqa.task import Vqa

from tests.support.outcomes import metrics_of
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.tasks.base import Sample, TaskMetrics
from vlmfix.evaluation.tasks.protocol_files import load_protocol

SPLIT = ["cat"] * 3 + ["dog"] * 7


def task(scorer: str = "always") -> Vqa:
    return Vqa(DataFolder(), load_protocol("vqa.llava/custom").with_(scorer=scorer))


def sample(target: list[str], kind: str = "other", number: int = 1) -> Sample:
    meta = {"image_id": 1, "question": "?", "question_type": "what", "answer_type": kind}
    return Sample(f"vqa/{number}", "1", None, "?", target, meta)


def value(metrics: list[Metric], name: str = "accuracy", group: str = "") -> float | None:
    """The value of a metric; None if a denominator is zero."""
    [found] = [each for each in metrics if (each.name, each.group) == (name, group)]
    return found.value if found.is_defined else None


@pytest.mark.parametrize(
    ("text", "target", "always", "official", "m4c"),
    [
        ("dog", SPLIT, 1, 1, 1),
        ("cat", SPLIT, 0.9, 0.9, 0.9),  # 2/3 where one of the three is left out, 1 for the others
        ("Cat.", SPLIT, 0.9, 0.9, 0.9),
        ("the dog", SPLIT, 1, 1, 1),
        ("bird", SPLIT, 0, 0, 0),
        ("Dog", ["dog"] * 10, 1, 0, 1),  # the official script compares as it is where people agree
        ("dog", ["dog"] * 10, 1, 1, 1),
        ("", ["dog"] * 10, 0, 0, 0),
        ("two", ["2"] * 9 + ["3"], 1, 1, 1),
        ("a b", ["dog"] + ["cat"] * 9, 0, 0, 0),
        ("dog", ["dog"] + ["cat"] * 9, 0.3, 0.3, 0.3),  # 1/3 for nine, 0 for the one
    ],
)
def test_accuracy_of_one_answer(
    text: str, target: list[str], always: float, official: float, m4c: float
) -> None:
    for scorer, expected in (("always", always), ("official", official), ("m4c", m4c)):
        judgement = task(scorer).judge(sample(target), text, truncated=False)
        assert judgement.value == pytest.approx(expected), scorer
        assert judgement.verdict == f"{expected:.0%}"
        assert judgement.parsed == text.strip()


def scores(scorer: str = "always") -> TaskMetrics:
    asked = [
        sample(SPLIT, "other", 1),
        sample(["yes"] * 10, "yes/no", 2),
        sample(["yes"] * 10, "yes/no", 3),
        sample(["2"] * 10, "number", 4),
        sample(["x"] * 10, "", 5),
    ]
    return metrics_of(
        task(scorer), asked, ["cat", "Yes", "No", None, "x"], [True, False, False, False, False]
    )


def test_figures_by_type_of_answer() -> None:
    metrics = scores().metrics
    assert (metrics[0].name, metrics[0].group) == ("accuracy", "")
    assert value(metrics) == pytest.approx((0.9 + 1 + 0 + 1) / 4)  # the failed one adds nothing
    assert value(metrics, group="other") == pytest.approx(0.9)
    assert value(metrics, group="yes/no") == pytest.approx(0.5)
    assert value(metrics, group="number") is None
    assert value(metrics, "words") == 1
    assert value(metrics, "truncated") == pytest.approx(1 / 4)


def test_modes_stand_side_by_side() -> None:
    found = scores("official")
    assert list(found.parsers) == ["official", "always", "m4c"]
    assert found.metrics[: len(found.parsers["official"])] == found.parsers["official"]
    assert value(found.parsers["official"], group="yes/no") == 0  # "Yes" is not "yes"
    assert value(found.parsers["always"], group="yes/no") == pytest.approx(0.5)


@pytest.mark.parametrize("scorer", ["always", "official"])
def test_questions_with_other_numbers_of_answers(scorer: str) -> None:
    asked = [sample(["a"], number=1), sample(["a", "b", "a", "a"], number=2)]
    found = metrics_of(task(scorer), asked, ["a", "a"], [False, False])
    assert list(found.parsers) == [scorer]
    # alone, nobody is left to agree; of four, three find two others and one finds three
    assert value(found.metrics) == pytest.approx((0 + (3 * 2 / 3 + 1) / 4) / 2)


def test_textvqa_wants_ten_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [sample(["a"] * 10, number=1), sample(["a"] * 9, number=2)]
    monkeypatch.setattr(module, "vqa_samples", lambda data, protocol: asked)
    assert task("always").samples(Path("unused")) == asked
    with pytest.raises(ValueError, match=r"needs ten answers to each question, and 1 of 2 .*\(vqa/2\)"):
        task("m4c").samples(Path("unused"))


def test_nothing_answered() -> None:
    found = metrics_of(task(), [sample(SPLIT)], [None], [False])
    assert all(not each.is_defined for each in found.metrics)


def test_what_is_right_in_words() -> None:
    assert task().target(sample(SPLIT)) == "dog (7), cat (3)"


def test_samples(world: Path) -> None:
    vqa = Vqa(DataFolder.find(world), load_protocol("vqa.tiny/synthetic"))
    samples = vqa.samples(Path("unused"))
    assert len(samples) == len({each.id for each in samples}) > 20
    assert all(len(each.target) == 10 for each in samples)
    assert {each.meta["answer_type"] for each in samples} <= {"yes/no", "number", "other"}


def test_questions_of_gqa(tmp_path: Path) -> None:
    """The shape of its balanced questions."""
    questions = {
        "201": {
            "question": "Is it red?",
            "answer": "yes",
            "imageId": "n1",
            "types": {"structural": "verify"},
        },
        "202": {
            "question": "What is it?",
            "answer": "cup",
            "imageId": "n1",
            "types": {"structural": "query"},
        },
    }
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(json.dumps(questions))
    (tmp_path / "images").mkdir()
    task = Vqa(DataFolder.find(tmp_path), load_protocol("gqa.llava").on("custom"))
    samples = task.samples(tmp_path)
    assert [(each.id, each.cluster, each.target) for each in samples] == [
        ("vqa/201", "n1", ["yes"]),
        ("vqa/202", "n1", ["cup"]),
    ]
    assert samples[0].image == tmp_path / "images" / "n1.jpg"
    found = metrics_of(task, samples, ["Yes.", "a cup"], [False, False])
    values = {each.group: each.value for each in found.metrics if each.name == "accuracy"}
    assert values == {"": 0.5, "query": 0.0, "verify": 1.0}
    path.write_text(json.dumps({"201": {"question": "Is it red?"}}))
    with pytest.raises(ValueError, match="question 201: no answer"):
        task.samples(tmp_path)
