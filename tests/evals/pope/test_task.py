"""POPE: figures of hand-made answers, by each parser, split by split."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from vlmfix.evals.pope.scores import score
from vlmfix.evals.pope.task import Pope

from tests.support.outcomes import metrics_of
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.tasks.base import Sample, TaskMetrics
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS

ANSWERS = [
    ("random", "yes", "dog", "Yes."),
    ("random", "yes", "cat", "no"),
    ("random", "no", "car", "Yes"),
    ("random", "no", "bus", None),
    ("popular", "yes", "dog", "maybe"),
    ("popular", "no", "car", "No"),
    ("popular", "no", "cat", "nope, it is not"),
]


def task(parser: str = "strict") -> Pope:
    return Pope(DataFolder(), load_protocol("pope.llava/custom").with_(parser=parser))


def sample(number: int, split: str, target: str, name: str) -> Sample:
    prompt = f"Is there a {name} in the image?"
    return Sample(
        f"pope/custom/{split}/{number}", "1.jpg", None, prompt, target, {"split": split, "object": name}
    )


def scores(parser: str = "strict", answers: list[tuple[str, str, str, str | None]] = ANSWERS) -> TaskMetrics:
    samples = [sample(number, *answer[:3]) for number, answer in enumerate(answers)]
    texts = [text for *_, text in answers]
    return metrics_of(task(parser), samples, texts, [False] * len(samples))


def value(metrics: list[Metric], name: str, group: str = "") -> float | None:
    """The value of a metric; None if a denominator is zero."""
    [found] = [each for each in metrics if (each.name, each.group) == (name, group)]
    return found.value if found.is_defined else None


EXPECTED = {
    "accuracy": (1 / 3, 2 / 3, 1 / 2),
    "F1": (1 / 2, 0, 1 / 4),
    "precision": (1 / 2, None, None),
    "recall": (1 / 2, 0, 1 / 4),
    "false-yes rate": (1, 0, 1 / 2),
    "yes ratio": (2 / 3, 0, 1 / 3),
    "unparsed": (0, 1 / 3, 1 / 6),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_by_split_and_their_mean(name: str) -> None:
    metrics = scores().metrics
    found = tuple(value(metrics, name, group) for group in ("random", "popular", ""))
    assert found == pytest.approx(EXPECTED[name]) if None not in EXPECTED[name] else found == EXPECTED[name]


def test_the_accuracy_of_the_protocol_comes_first() -> None:
    metrics = scores().metrics
    assert (metrics[0].name, metrics[0].group) == ("accuracy", "")
    assert [each.name for each in metrics[-2:]] == ["words", "truncated"]


def test_failed_samples_add_nothing() -> None:
    without = [answer for answer in ANSWERS if answer[3] is not None]
    for parser in PARSERS:
        for one, other in zip(scores(parser).metrics, scores(parser, without).metrics, strict=True):
            assert (one.name, one.group, one.is_defined) == (other.name, other.group, other.is_defined)
            assert one.value == pytest.approx(other.value)
    assert scores().objects == scores("strict", without).objects


def test_parsers_stand_side_by_side() -> None:
    found = scores("official")
    assert set(found.parsers) == set(PARSERS)
    assert next(iter(found.parsers)) == "official"
    assert found.parsers["official"] == found.metrics[: len(found.parsers["official"])]
    assert found.unparsed == 0
    assert scores("strict").unparsed == 1
    assert scores("lmms_eval").unparsed == 3
    assert value(found.parsers["official"], "accuracy", "popular") == 1  # "maybe" is a yes
    assert value(found.parsers["strict"], "accuracy", "popular") == pytest.approx(2 / 3)
    assert value(found.parsers["lmms_eval"], "accuracy", "random") == 0  # "Yes." has a dot


def test_lmms_eval_leaves_unread_answers_out_of_the_recall() -> None:
    metrics = scores("lmms_eval").metrics
    assert value(metrics, "recall", "random") == 0  # of one: "Yes." is unread, "no" is wrong
    assert value(metrics, "recall", "popular") is None  # the only one is unread
    [recall] = [each for each in metrics if (each.name, each.group) == ("recall", "random")]
    assert recall.wholes.sum() == 1


@pytest.mark.parametrize("parser", PARSERS)
def test_the_figures_are_those_of_the_scorer(parser: str) -> None:
    """The same answers by `vlmfix score` and by `vlmfix eval`."""
    dice = random.Random(0)
    said = ["Yes", "No.", "yes, there is", "There isn't one", "maybe", "", "no no", "Yes and no", "NO", "not"]
    answers = [
        (split, dice.choice(["yes", "no"]), "dog", dice.choice(said))
        for split in ("random", "popular", "adversarial")
        for _ in range(60)
    ]
    metrics = scores(parser, answers).metrics
    names = {
        "accuracy": "accuracy",
        "precision": "precision",
        "recall": "recall",
        "F1": "f1",
        "yes ratio": "yes_ratio",
        "unparsed": "unparsed_share",
    }
    for split in ("random", "popular", "adversarial"):
        own = [answer for answer in answers if answer[0] == split]
        verdicts = [PARSERS[parser](text, target) for _, target, _, text in own]  # type: ignore[arg-type]
        expected = score(verdicts, [target for _, target, _, _ in own], parser=parser)  # type: ignore[misc]
        for name, field in names.items():
            assert value(metrics, name, split) == pytest.approx(getattr(expected, field)), (name, split)


def test_a_single_split_is_the_whole() -> None:
    metrics = scores("strict", [answer for answer in ANSWERS if answer[0] == "random"]).metrics
    assert {each.group for each in metrics} == {""}
    assert value(metrics, "accuracy") == pytest.approx(1 / 3)


def test_overall_of_vlmevalkit_counts_a_question_once_a_split() -> None:
    splits = ("random", "popular", "adversarial")
    asked = [
        *((split, "yes", "dog", "Yes") for split in splits),
        ("random", "no", "car", "Yes"),
        *((split, "no", "cup", "No") for split in splits[1:]),
        ("adversarial", "no", "bed", "Perhaps"),
        *((split, "yes", "bus", "No") for split in splits[:2]),
    ]
    metrics = scores("vlmevalkit", asked).metrics
    assert value(metrics, "Overall") == pytest.approx(2 / 3)  # of distinct questions 1/2, of splits .722
    assert [value(metrics, "F1", split) for split in splits] == pytest.approx([0.5, 2 / 3, 1.0])


def test_repeats_of_a_question_are_not_the_same_question() -> None:
    asked = sample(1, "random", "yes", "dog")
    found = metrics_of(task("vlmevalkit"), [asked, asked], ["yes", "no"], [False, False])
    assert value(found.metrics, "accuracy") == pytest.approx(1 / 2)


def test_vcd_knows_what_is_right() -> None:
    metrics = scores(
        "vcd", [("random", "no", "dog", "I do not know"), ("random", "no", "cat", "Yes")]
    ).metrics
    assert value(metrics, "accuracy") == pytest.approx(1 / 2)  # "not" and "know" hold a "no"


def test_objects_with_their_errors() -> None:
    assert scores().objects == {"cat": (1, 2), "car": (1, 2), "dog": (1, 2)}


def test_nothing_answered() -> None:
    found = scores("strict", [(*answer[:3], None) for answer in ANSWERS])
    assert all(not each.is_defined for each in found.metrics)
    assert (found.objects, found.unparsed) == ({}, 0)


@pytest.mark.parametrize(
    ("parser", "text", "target", "parsed", "verdict", "points"),
    [
        ("strict", "Yes, it is.", "yes", "yes", "yes", 1),
        ("strict", "No.", "yes", "no", "no", 0),
        ("strict", "", "no", None, "unparsed", 0),
        ("official", "", "no", "yes", "yes", 0),
        ("official", "There is no dog.", "no", "no", "no", 1),
    ],
)
def test_judging_one_answer(
    parser: str, text: str, target: str, parsed: str | None, verdict: str, points: float
) -> None:
    judgement = task(parser).judge(sample(1, "random", target, "dog"), text, truncated=False)
    assert (judgement.parsed, judgement.verdict, judgement.value) == (parsed, verdict, points)


def test_words_and_cut_answers() -> None:
    asked = [sample(number, "random", "yes", "dog") for number in range(3)]
    found = metrics_of(task(), asked, ["Yes it is", "Yes", None], [True, False, True])
    assert value(found.metrics, "words") == 2
    assert value(found.metrics, "truncated") == pytest.approx(1 / 2)


def test_samples_are_built_where_there_are_no_files(world: Path, tmp_path: Path) -> None:
    scenes = DataFolder.find(instances=world / "instances.json", images=world / "images")
    samples = Pope(scenes, load_protocol("pope.tiny/synthetic")).samples(tmp_path)
    assert len(samples) == 36
    assert len({each.id for each in samples}) == 36
    assert {each.meta["split"] for each in samples} == {"random", "popular", "adversarial"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"synthetic_pope_{split}.json" for split in ("adversarial", "popular", "random")
    ]
    assert [each.target for each in samples].count("yes") == 18
    assert {each.target for each in samples} == {"yes", "no"}


def test_the_same_answers_by_corrected_labels(tmp_path: Path) -> None:
    """The example of the specification, in each split."""
    rows = [
        {
            "question_id": id,
            "image": f"COCO_val2014_{id:012d}.jpg",
            "text": f"Is there a {name} in the image?",
        }
        for id, name in enumerate(("dog", "cat", "car", "bus", "cup", "fork"), 1)
    ]
    kept = {1: "yes", 2: "no", 3: "no", 5: "yes", 6: "yes"}
    for split in ("random", "popular", "adversarial"):
        asked = [row | {"label": "yes" if row["question_id"] % 2 else "no"} for row in rows]
        corrected = [row | {"label": kept[row["question_id"]]} for row in rows if row["question_id"] in kept]
        for name, content in (("pope", asked), ("repope", corrected)):
            (tmp_path / f"coco_{name}_{split}.json").write_text("\n".join(map(json.dumps, content)))
    (tmp_path / "val2014").mkdir()
    pope = Pope(DataFolder.find(tmp_path), load_protocol("pope.llava/coco").with_(parser="strict"))
    with pytest.warns(UserWarning, match="6 questions and POPE's present file 3000"):
        samples = pope.samples(tmp_path / "built")
    said = dict(zip(range(1, 7), ("Yes", "No", "Yes", "Yes", "No", "Yes"), strict=True))
    texts: list[str | None] = [said[int(each.id.rpartition("/")[2])] for each in samples]
    found = metrics_of(pope, samples, texts, [False] * 18).metrics
    for group in ("", "random", "popular", "adversarial"):
        assert value(found, "accuracy", group) == pytest.approx(0.5)
        assert value(found, "F1", group) == pytest.approx(4 / 7)
    for group in ("RePOPE", "RePOPE random", "RePOPE popular", "RePOPE adversarial"):
        assert value(found, "accuracy", group) == pytest.approx(0.6)
        assert value(found, "F1", group) == pytest.approx(2 / 3)
    (tmp_path / "coco_repope_random.json").write_text(json.dumps(rows[0] | {"label": "no", "image": "x.jpg"}))
    with (
        pytest.raises(ValueError, match="these labels are of another release of POPE"),
        pytest.warns(UserWarning, match="6 questions"),
    ):
        pope.samples(tmp_path / "built")
