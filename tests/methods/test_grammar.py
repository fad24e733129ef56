"""Methods as people write them: names, old and new, several with `+`, and settings."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import vlmfix
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.methods.grammar import make_methods, parse_methods, parse_settings

PROMPT = "Is there a dog in the image?"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("control.greedy", "baseline.greedy"),
        ("control.text_contrast", "baseline.text_contrast"),
        ("randomtokens", "random_tokens"),
        ("uniformgrid", "uniform_grid"),
        ("pyramiddrop", "pyramid_drop"),
    ],
)
def test_old_spellings_are_told_the_new_ones(old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=f"method '{old}' is called '{new}' now"):
        assert vlmfix.make_method(old) == vlmfix.make_method(new)
    with pytest.warns(FutureWarning, match=new):
        assert list(parse_methods(f"var+{old}")) == ["var", new]
    assert old not in vlmfix.method_names()


def test_old_spellings_have_settings_and_todays_labels() -> None:
    with pytest.warns(FutureWarning, match=r"baseline\.sharpen"):
        [chosen] = parse_settings(["control.sharpen"], ["control.sharpen.c=2"])
    assert chosen == {"baseline.sharpen": {"c": 2}}
    with pytest.warns(FutureWarning, match=r"baseline\.sharpen"):
        variant = Variant.of("var+control.sharpen", {"control.sharpen": {"c": 2}})
    assert variant.label == "var+baseline.sharpen(c=2)"


def test_todays_names_are_said_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in vlmfix.method_names():
            assert vlmfix.make_method(name).name == name


def test_settings_go_to_the_method_that_they_name() -> None:
    texts, settings = ["var", "var+vhr", "greedy"], ["var.moved_fraction=0.1", "vhr.head_scale=2"]
    assert parse_settings(texts, settings) == [
        {"var": {"moved_fraction": 0.1}},
        {"var": {"moved_fraction": 0.1}, "vhr": {"head_scale": 2}},
        {},
    ]
    assert parse_settings(["vhr"], ["head_scale=3"]) == [{"vhr": {"head_scale": 3}}]


@pytest.mark.parametrize(
    ("texts", "setting", "message"),
    [
        (
            ["var+vhr"],
            "head_scale=2",
            r"--set head_scale may belong to any of var\+vhr; write var\.head_scale",
        ),
        (["var", "greedy"], "moved_fraction=0", "--set moved_fraction may belong to any of var, greedy"),
        (["var"], "vhr.head_scale=2", "--set vhr.head_scale is of no method in --method var"),
        (["greedy"], "x=1", "greedy has no parameters, but --set gives x"),
        (["var"], "moved_fraction", "'moved_fraction' is not KEY=VALUE"),
        (["var"], "=1", "'=1' is not KEY=VALUE"),
    ],
)
def test_settings_of_no_method(texts: list[str], setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(texts, [setting])


def test_a_missing_name_is_called_so(loaded: tuple[Any, Any]) -> None:
    for text in ("var+", "+var", "var++vhr"):
        rest = text.strip("+").replace("++", "+")
        with pytest.raises(ValueError, match="lacks a name beside") as caught:
            vlmfix.generate(*loaded, None, PROMPT, text)
        assert f"write {rest!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # VDD lacks a value on the embedded model; that there are two comes first, since no value would help.
        ("vcd+vdd", "VCD defines the logits of this model already, and VDD would, too"),
        ("vdd+vcd", "VDD defines the logits of this model already, and VCD would, too"),
        ("fastv+divprune", "FastV drops image tokens of this model already"),
        ("vcd+opera", "OPERA tries tokens and takes them back, which VCD, which defines the logits"),
    ],
)
def test_what_does_not_go_together_is_refused_first(loaded: tuple[Any, Any], text: str, message: str) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match=message):
        vlmfix.generate(*loaded, None, PROMPT, text)
    with pytest.raises(vlmfix.UnsupportedError, match=message):
        Variant.of(text, {})


def test_what_does_not_go_together_is_refused_before_what_a_model_lacks(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="no unknown token is known"):
        vlmfix.VDD()(*loaded).__enter__()
    with (
        vlmfix.VCD()(*loaded),
        pytest.raises(vlmfix.UnsupportedError, match="VCD defines the logits of this model already"),
    ):
        vlmfix.VDD()(*loaded).__enter__()


def test_a_method_at_strength_zero_goes_with_all(loaded: tuple[Any, Any]) -> None:
    chosen = parse_methods("vcd+vdd", {"vdd": {"alpha": 0, "beta": 0}})
    assert [method.is_identity for method in make_methods(chosen)] == [False, True]


def test_greedy_is_no_method(loaded: tuple[Any, Any]) -> None:
    plain = vlmfix.generate(*loaded, None, PROMPT, max_new_tokens=4)
    assert vlmfix.generate(*loaded, None, PROMPT, "greedy", max_new_tokens=4) == plain
