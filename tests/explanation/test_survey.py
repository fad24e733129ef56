"""Averages over explained answers, against means written as loops."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vlmfix.evals.chair.explained_objects import objects_in

import vlmfix
from vlmfix.explanation.knockout import RULES
from vlmfix.explanation.result import Explanation
from vlmfix.explanation.survey import Survey, light, survey
from vlmfix.explanation.survey_page import survey_json, survey_page, survey_plot
from vlmfix.models.profiles import find_profile


@pytest.fixture(scope="module")
def explanations(loaded: tuple[Any, Any], world: Path) -> list[Explanation]:
    found = [
        vlmfix.explain(*loaded, path, objects=objects, name="tiny-llava", max_new_tokens=40)
        for path, objects in objects_in(world, 3)
    ]
    return [light(each) for each in found]


@pytest.fixture(scope="module")
def found(explanations: list[Explanation], loaded: tuple[Any, Any]) -> Survey:
    profile = find_profile(loaded[0])
    assert profile is not None
    return survey(explanations, profile.values)


def test_means_over_words(explanations: list[Explanation], found: Survey) -> None:
    for kind, is_present in (("present", True), ("invented", False)):
        gains, cuts, curves = [], [], []
        for each in explanations:
            for named in each.plain.named or ():
                if named.is_present == is_present:
                    token = each.plain.words[named.words[0]].tokens[0]
                    assert each.plain.image_gain is not None
                    assert each.sliding is not None
                    gains.append(each.plain.image_gain[token])
                    cuts.append([each.cuts[rule][token] for rule in RULES])
                    curves.append(each.sliding[:, token])
        assert found.words[kind] == len(gains)
        if gains:
            assert found.table["image gain"][kind].value == pytest.approx(np.mean(gains), abs=1e-5)
            for rule, expected in zip(RULES, np.mean(cuts, axis=0), strict=True):
                assert found.table[rule][kind].value == pytest.approx(expected, abs=1e-5)
            np.testing.assert_allclose(found.sliding[kind], np.mean(curves, axis=0))
    assert found.words["present"] > 3
    estimate = found.table["image gain"]["present"]
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.value < estimate.high


def test_page_and_numbers(found: Survey) -> None:
    page = survey_page(found)
    assert page == survey_page(found)
    assert "http" not in page.replace("http-equiv", "").lower()
    assert f"name {found.words['present']} objects that are in the picture" in page
    assert "sink_<wbr>threshold" in page
    assert "attention iou" in page
    content = json.loads(survey_json(found))
    assert content["words"] == dict(found.words)
    assert set(content["judged"]) == {"band", "rollout", "contrast", "encoder"}
    plot = survey_plot(found)
    assert plot is not None
    assert "image_to_generated" in plot.description


def test_without_objects_there_is_nothing_to_average(explanations: list[Explanation]) -> None:
    empty = [
        dataclasses.replace(each, plain=dataclasses.replace(each.plain, named=[])) for each in explanations
    ]
    with pytest.raises(ValueError, match="no answer about 3 pictures names an object"):
        survey(empty, {})
    with pytest.raises(ValueError, match="give pictures"):
        survey([], {})
