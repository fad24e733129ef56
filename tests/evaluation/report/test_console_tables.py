"""Tables in the terminal."""

import dataclasses

import pytest

from tests.support import outcomes
from tests.support.reports import printed


def test_headline_and_companions() -> None:
    text = printed(outcomes.captions(images=80), outcomes.captions("vcd", care=0.9, images=80))
    assert "chair (chair.512)" in text
    for head in ("CHAIRs, %", "(lower is", "recall, %", "words", "truncated,"):
        assert head in text
    assert "]*" in text
    assert "* at the first figure: more than chance" in " ".join(text.split())
    assert "2.1 (x1.00)" in text
    assert "McNemar" not in text


def test_yes_no_tasks_show_groups_and_mcnemar() -> None:
    text = printed(outcomes.yes_no(), outcomes.yes_no("var", yes_bias=0.3))
    assert "accuracy by group" in text
    assert "adversarial" in text
    assert "McNemar p" in text
    assert "15.2 GiB" in text
    assert "Two parsers differ" in text


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    label = "var(moved_fraction=0.6, sink_threshold=20.0, layers=[1, 2])"
    text = printed(outcomes.yes_no(), outcomes.yes_no(label, yes_bias=0.2), outcomes.captions(), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_figures_are_not_folded() -> None:
    text = printed(outcomes.yes_no(images=100), outcomes.yes_no("var", yes_bias=0.2, images=100), width=60)
    assert "…" not in text
    for line in text.splitlines():
        assert line.count("[") == line.count("]")


def test_one_method_has_no_differences() -> None:
    text = printed(outcomes.captions())
    assert "Second line" not in text
    assert "95 % interval" in text


def test_inactive_and_partial_methods_show() -> None:
    inactive = outcomes.captions("vcd", inactive=True)
    partial = outcomes.captions("opera", counts={"samples": 1000, "answered": 410, "failed": 2})
    text = printed(outcomes.captions(), inactive, partial, terminal=True)
    assert "vcd: inactive, it never acted." in text
    assert "partial (412 of 1,000)" in text
    assert "\x1b[2m" in text  # dim


def test_no_colours_in_a_file() -> None:
    assert "\x1b" not in printed(outcomes.captions(), outcomes.captions("vcd", care=0.9))


def test_failures_and_undefined_figures_show() -> None:
    text = printed(outcomes.yes_no(), outcomes.yes_no("var", failed=(1, 2, 3)))
    assert "var: 3 of 216 samples failed (3 OSError)." in text
    nothing = outcomes.captions(images=0)
    assert "undefined" in printed(nothing)


def test_labels_are_no_markup() -> None:
    text = printed(outcomes.captions("[red]greedy[/]"), dataclasses.replace(outcomes.captions("[bold]")))
    assert "[red]greedy[/]" in text
    assert "[bold]" in text


def test_nothing_to_show() -> None:
    assert printed().strip() == "[a, b]: 95 % interval, clustered by image."
    assert "q" in printed(dataclasses.replace(outcomes.captions(), metrics=[], task="q"))


def test_repeats_have_a_spread() -> None:
    text = printed(outcomes.yes_no(repeats=3), outcomes.yes_no("var", repeats=3))
    assert "(SD " in text
