"""Heads whose sinks hurt: those of ACT that by themselves turn wrong answers into right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmfix
from vlmfix.calibration import sink_heads
from vlmfix.calibration.calibrate import calibrate, write_profile
from vlmfix.calibration.sink_heads import YesNoQuestion
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare
from vlmfix.methods.baselines.output_shift import answer_ids, answer_margins
from vlmfix.models.profiles import Profile

PICTURE = render(sample_scene(7, 0))
TEXT = "Is there a dog in the image?"

pytestmark = pytest.mark.filterwarnings(
    "ignore:. questions; which heads help is firm",
    "ignore::vlmfix.engine.stats.InactiveMethodWarning",  # heads without a sink
)


@pytest.fixture
def margin(loaded: tuple[Any, Any]) -> float:
    """How much likelier yes is than no without ACT."""
    return margin_of(*loaded)


@pytest.fixture(autouse=True)
def _just_no(margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model just says no to the question, so that every head that matters decides."""

    def shifted(logits: Tensor, *ids: Any) -> Tensor:
        return answer_margins(logits, *ids) - margin - 1e-4

    monkeypatch.setattr(sink_heads, "answer_margins", shifted)


def margin_of(model: Any, processor: Any) -> float:
    inputs: Any = prepare([[PICTURE]], [TEXT], processor)
    with torch.no_grad():
        return float(answer_margins(model(**inputs).logits[:, -1], *answer_ids(processor.tokenizer)))


def test_each_head_is_tried_alone_and_the_list_on_other_questions(
    loaded: tuple[Any, Any], margin: float, tmp_path: Path
) -> None:
    expected = []
    for layer in range(2, 7):
        for head in range(6):
            with vlmfix.ACT(heads=((layer, head),))(*loaded):
                if margin_of(*loaded) > margin + 1e-4:
                    expected.append([layer, head])
    assert 0 < len(expected) < 30
    counted: list[int] = []
    questions = [YesNoQuestion(PICTURE, TEXT, is_yes=True)] * 2
    found = calibrate("act", *loaded, questions, progress=counted.append)
    assert found.values == {"act_heads": expected}
    assert found.findings["right without"] == "0 of 1"
    assert found.findings["right on held-out questions"] == "0 without, 1 with the heads, of 1"
    assert sum(counted) == 2
    profile = Profile.read(write_profile(loaded[0], found, "mine", tmp_path / "mine.yaml"))
    assert vlmfix.ACT().resolve(loaded[0].config, profile).heads == tuple(map(tuple, expected))


def test_a_list_that_does_not_hold_is_told(loaded: tuple[Any, Any]) -> None:
    other = YesNoQuestion(PICTURE, "Is there a fork in the image?", is_yes=True)
    with pytest.warns(UserWarning, match="the listed heads make 1 of 1 answers right, and 1 are without"):
        calibrate("act", *loaded, [YesNoQuestion(PICTURE, TEXT, is_yes=True), other])


def test_what_is_refused(loaded: tuple[Any, Any]) -> None:
    no = YesNoQuestion(PICTURE, TEXT, is_yes=False)
    with pytest.raises(ValueError, match="in no head alone does ACT make more of 1 answers right than the 1"):
        calibrate("act", *loaded, [no, no])
    with pytest.raises(ValueError, match="give two or more of a kind"):
        calibrate("act", *loaded, [no])
    with pytest.raises(ValueError, match="give YesNoQuestion objects"):
        calibrate("act", *loaded, [PICTURE])


def test_few_questions_are_worth_a_warning(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_heads._Reader, "is_right", lambda *_: True)
    monkeypatch.setattr(
        sink_heads._Reader, "each_alone", lambda *_: (torch.ones(5, 6).long(), torch.ones(5, 6))
    )
    with (
        pytest.warns(UserWarning, match="2 questions; which heads help is firm from about 100 on"),
        pytest.raises(ValueError, match="in no head alone"),
    ):
        calibrate("act", *loaded, [YesNoQuestion(PICTURE, TEXT, is_yes=True)] * 2)
