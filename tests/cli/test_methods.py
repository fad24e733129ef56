"""`vlmfix methods`: the table, and what works on a model."""

from __future__ import annotations

import re

import vlmfix
from tests.support import jobs


def test_which_methods_work_on_a_model() -> None:
    result = jobs.cli("methods", "--model", "tiny-llava")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.replace("│", " ").split())
    assert re.search(
        r"var yes sink_threshold = 6.5 .* of profile tiny-llava, by type and shape: \[23, 117", text
    )
    assert "pyramid_drop no no schedule of PyramidDrop is published for 8 layers" in text
    assert re.search("weights: sampled-sha256:[0-9a-f]{32}$", text)


def test_methods_are_listed_by_stage() -> None:
    result = jobs.cli("methods")
    assert result.exit_code == 0
    for name, cls in vlmfix.list_methods().items():
        stage = re.search(rf"^ {cls.info.stage}  .*?(?=\n +\n|\Z)", result.stdout, re.MULTILINE | re.DOTALL)
        assert stage is not None
        assert re.search(rf"^ {re.escape(name)} .* {cls.info.forwards:g} ", stage[0], re.MULTILINE)
        assert len(stage[0].splitlines()) <= 50  # on one screen


def test_a_method_is_described() -> None:
    result = jobs.cli("methods", "deco", "adhh")
    assert result.exit_code == 0
    text = " ".join(result.stdout.replace("│", " ").split())
    assert "logits: the logits of an inner layer are added" in text
    assert "built from released code; arXiv 2410.11779 defaults" in text
    assert "built from released code; github.com/" in text
    for name in vlmfix.DeCo.parameter_names():
        assert f" {name} = " in text


def test_what_methods_cannot_be_told() -> None:
    assert "error: unknown method 'vhrr' (did you mean 'vhr'?)" in jobs.cli("methods", "vhrr").stderr
    for option in (("--model", "tiny-llava"), ("--markdown",)):
        result = jobs.cli("methods", "vhr", *option)
        assert result.exit_code == 2
        assert f"{option[0]} is of all methods; leave out vhr" in result.stderr
