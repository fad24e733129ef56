"""Methods side by side: intervals, pairing, McNemar's test, notes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.support import outcomes
from vlmfix.evaluation.analysis.comparison import Row, compare, find
from vlmfix.evaluation.analysis.intervals import paired_estimate
from vlmfix.evaluation.analysis.results import Metric, Outcome, SampleResult
from vlmfix.evaluation.report.caveats import caveats, failed, progress


def plain(method: str, scores: list[float | None], **changes: object) -> Outcome:
    """Two questions about each image, with accuracy as the only metric."""
    samples = [
        SampleResult(
            f"q/{index}", f"image{index // 2}", None, f"question {index}", "yes", "Yes.", "yes", score
        )
        for index, score in enumerate(scores)
    ]
    answered = np.array([[score is not None for score in scores]], dtype=float)
    metric = Metric("accuracy", np.array([[score or 0 for score in scores]]), answered, better="higher")
    outcome = Outcome(
        task="q",
        protocol="q.default",
        method=method,
        parameters={},
        samples=samples,
        repeats=np.zeros(len(samples), dtype=int),
        metrics=[metric],
        yes_no=True,
    )
    return dataclasses.replace(outcome, **changes)  # type: ignore[arg-type]


def rows(*several: Outcome) -> list[Row]:
    [comparison] = compare(several)
    return comparison.rows


def test_intervals_of_yes_no_figures() -> None:
    [row] = rows(outcomes.yes_no())
    sources = {
        (each.metric.name, each.metric.group): (each.estimate.source, each.estimate.samples)
        for each in row.figures
    }
    assert sources["accuracy", "random"] == ("Wilson", 72)
    assert sources["accuracy", ""] == ("Wilson", 216)  # a mean of three splits
    assert sources["F1", "random"][0] == sources["precision", "random"][0] == "Wilson"
    assert sources["words", ""][0] == "sandwich"
    assert all(each.estimate.clusters == 12 for each in row.figures)
    for each in row.figures:
        assert each.difference is each.spread is None
        if each.metric.name != "words":
            assert each.estimate.low is not None
            assert each.estimate.low <= each.metric.value <= each.estimate.high  # type: ignore[operator]


def test_difference_of_means_is_paired_by_sample() -> None:
    before, after = [1.0, 0, 0, 1, 0, 1, 1, 0], [1.0, 1, 0, 1, 1, 1, 0, 0]
    _, row = rows(plain("a", before), plain("b", after))
    [figure] = row.figures
    accuracies = [plain("", scores).metrics[0] for scores in (after, before)]
    assert figure.difference == paired_estimate(*accuracies, np.arange(8) // 2)
    assert row.mcnemar[""].better == 2
    assert row.mcnemar[""].worse == 1
    assert row.mcnemar[""].p == pytest.approx(1.0)


def test_difference_of_ratios_uses_the_same_resamples() -> None:
    _, row = rows(outcomes.yes_no("a"), outcomes.yes_no("b"))
    figure = row.figure("F1")
    assert figure is not None
    assert figure.difference is not None
    assert figure.difference.source == "bootstrap"
    assert (figure.difference.value, figure.difference.low, figure.difference.error) == (0, None, 0)


def test_better_method_shows() -> None:
    first, row = rows(outcomes.captions(images=100), outcomes.captions("careful", care=0.9, images=100))
    figure, before = row.figure("CHAIRi"), first.figure("CHAIRi")
    assert figure is not None
    assert before is not None
    assert figure.difference is not None
    assert figure.difference.value == pytest.approx(figure.metric.value - before.metric.value)
    assert figure.difference.value < 0
    assert figure.difference.excludes_zero


def test_failed_samples_leave_both_methods() -> None:
    _, row = rows(plain("a", [1, 0, 0, 1, 0, 1]), plain("b", [1, 1, None, 1, None, 1]))
    [figure] = row.figures
    assert figure.estimate.samples == 4
    assert figure.estimate.value == 1
    assert figure.difference is not None
    assert figure.difference.samples == 4
    assert figure.difference.value == 0.25
    assert (row.mcnemar[""].better, row.mcnemar[""].worse) == (1, 0)


def test_all_right_is_not_certain() -> None:
    [row] = rows(plain("a", [1, 1, 1, 1, 1, 1]))
    found = row.figures[0].estimate
    assert found.value == found.high == 1
    assert found.low is not None
    assert 0 < found.low < 0.5


def test_one_image_has_values_only() -> None:
    first, second = rows(plain("a", [1, 0]), plain("b", [1, 1]))
    assert first.figures[0].estimate.low is None
    difference = second.figures[0].difference
    assert difference is not None
    assert (difference.value, difference.low, difference.clusters) == (0.5, None, 1)


def test_undefined_figures_have_no_difference() -> None:
    nothing = Metric("precision", np.zeros((1, 2)), np.zeros((1, 2)), better="higher")
    [comparison] = compare([plain("a", [1, 0], metrics=[nothing]), plain("b", [1, 0], metrics=[nothing])])
    for row in comparison.rows:
        assert not row.figures[0].is_defined
        assert row.figures[0].estimate.value == 0
        assert row.figures[0].estimate.low is None
        assert row.figures[0].difference is None
    assert caveats(comparison)[0] == "a: undefined for a zero denominator: precision."


def test_ratio_that_is_a_mean_for_one_method_only() -> None:
    always = Metric("precision", np.array([[1.0, 0, 1, 0]]), np.ones((1, 4)), better="higher")
    once = Metric("precision", np.array([[1.0, 0, 1, 0]]), np.array([[1.0, 0, 1, 0]]), better="higher")
    base = plain("a", [1, 0, 1, 0])
    _, row = rows(
        dataclasses.replace(base, metrics=[*base.metrics, once]),
        dataclasses.replace(base, metrics=[*base.metrics, always], method="b"),
    )
    figure = row.figure("precision")
    assert figure is not None
    assert figure.difference is not None
    assert figure.difference.value == -0.5
    assert figure.difference.source == "bootstrap"


def test_other_questions_are_not_paired() -> None:
    base = plain("a", [1, 0, 1, 0])
    asked = dataclasses.replace(base.samples[1], prompt="another question")
    other = dataclasses.replace(base, method="b", samples=[base.samples[0], asked, *base.samples[2:]])
    fewer = plain("c", [1, 0])
    [comparison] = compare([base, other, fewer])
    _, second, third = comparison.rows
    assert second.unpaired == "1 samples differ in prompt, target answer or image"
    assert third.unpaired == "only one of the two has 2 of the samples"
    for row in (second, third):
        assert row.figures[0].difference is None
        assert row.mcnemar == {}
    assert any("no paired differences: only one" in note for note in caveats(comparison))


def test_tasks_and_protocols_are_kept_apart() -> None:
    other = dataclasses.replace(outcomes.yes_no(), protocol="pope.bare/coco")
    comparisons = compare([outcomes.yes_no(), outcomes.captions(), other, outcomes.yes_no("var")])
    assert [(each.task, each.protocol, len(each.rows)) for each in comparisons] == [
        ("pope", "pope.llava/synthetic", 2),
        ("chair", "chair.512", 1),
        ("pope", "pope.bare/coco", 1),
    ]


def test_pictures_of_a_cluster_about_which_the_same_is_asked_all_count_in_mcnemar() -> None:
    def asked(method: str, scores: list[float | None]) -> Outcome:
        outcome = plain(method, scores)
        same = [
            dataclasses.replace(sample, cluster="cup", prompt="a cup?", image=Path(f"{number}.png"))
            for number, sample in enumerate(outcome.samples)
        ]
        return dataclasses.replace(outcome, samples=same)

    row = rows(asked("greedy", [0, 0, 1]), asked("var", [1, 1, 0]))[1]
    assert (row.mcnemar[""].better, row.mcnemar[""].worse) == (2, 1)


def test_questions_that_splits_share_count_once_in_mcnemar() -> None:
    _, row = rows(outcomes.yes_no(yes_bias=0.9), outcomes.yes_no("sure", yes_bias=0.1))
    assert list(row.mcnemar) == ["", *outcomes.SPLITS]
    assert row.mcnemar[""] == row.mcnemar["adversarial"]  # all splits ask the same, the first id counts
    assert row.mcnemar["random"].worse == 0


def test_several_repeats() -> None:
    first, row = rows(
        outcomes.yes_no(repeats=3, splits=["random"]),
        outcomes.yes_no("x", yes_bias=0.2, repeats=3, splits=["random"]),
    )
    figure = first.figure("accuracy")
    assert figure is not None
    assert figure.spread is not None
    assert len(figure.spread.values) == 3
    assert figure.spread.mean == pytest.approx(figure.estimate.value)
    assert figure.spread.deviation > 0
    assert figure.estimate.samples == 216
    assert row.mcnemar == {}  # repeats of a question are not independent
    assert row.figures[0].difference is not None


def test_order_of_samples_does_not_matter() -> None:
    outcome = outcomes.yes_no(repeats=2)
    [row], [same] = rows(outcome), rows(outcomes.shuffled(outcome))
    assert [each.estimate for each in row.figures] == [each.estimate for each in same.figures]
    assert row.outcome.samples == same.outcome.samples


def test_labels_samples_and_metrics_must_be_unique() -> None:
    outcome = plain("a", [1, 0])
    with pytest.raises(ValueError, match="a occurs twice on q"):
        compare([outcome, outcome])
    with pytest.raises(ValueError, match="has sample q/0 \\(repeat 0\\) twice"):
        compare([dataclasses.replace(outcome, samples=[outcome.samples[0]] * 2)])
    with pytest.raises(ValueError, match="a metric twice"):
        compare([dataclasses.replace(outcome, metrics=outcome.metrics * 2)])


def test_nothing_answered() -> None:
    [comparison] = compare([plain("a", []), plain("b", [])])
    assert [row.figures[0].is_defined for row in comparison.rows] == [False, False]
    [comparison] = compare([plain("a", [None, None]), plain("b", [None, None])])
    assert comparison.rows[1].figures[0].difference is None


def test_groups_and_headline() -> None:
    [comparison] = compare([outcomes.yes_no()])
    assert comparison.groups == ["", *outcomes.SPLITS]
    assert [each.name for each in comparison.headline("popular")] == [
        "accuracy",
        "F1",
        "precision",
        "recall",
        "false-yes rate",
    ]
    assert find(comparison.rows[0].figures, "accuracy", "no such group") is None


def test_answers_that_nothing_reads_are_told() -> None:
    [comparison] = compare(
        [outcomes.yes_no("var", counts={"samples": 216, "answered": 216, "unparsed": 100})]
    )
    assert any(
        note.startswith("var: 100 of 216 answers could not be read and count as wrong")
        for note in caveats(comparison)
    )
    [comparison] = compare([outcomes.yes_no("var", counts={"samples": 216, "answered": 216, "unparsed": 4})])
    assert not any("could not be read" in note for note in caveats(comparison))


def test_notes_tell_what_to_beware_of() -> None:
    lossy = outcomes.yes_no("var", failed=(0, 5))
    unfinished = outcomes.yes_no("vhr", counts={"samples": 1000, "answered": 210, "failed": 2})
    [comparison] = compare([outcomes.yes_no(), lossy, unfinished])
    found = caveats(comparison)
    assert found[:2] == [
        "var: 2 of 216 samples failed (2 OSError).",
        "vhr: partial (212 of 1,000 samples).",
    ]
    assert found[2].startswith("Two parsers differ by more than 0.5 points for 3 of 3 methods, most for ")
    assert "by strict and" in found[2]
    assert progress(lossy) is None
    assert progress(unfinished) == (212, 1000)
    assert failed(outcomes.yes_no()) == ""


def test_parsers_that_agree_are_not_noted() -> None:
    outcome = outcomes.yes_no()
    [comparison] = compare(
        [dataclasses.replace(outcome, parsers={"a": outcome.metrics, "b": outcome.metrics})]
    )
    assert not any("parsers" in note for note in caveats(comparison))
