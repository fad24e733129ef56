"""`vlmfix check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import zoo
from tests.support.jobs import cli, refused
from vlmfix.probe import check as module


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of methods, one of each verdict."""
    trials = module.trials

    def chosen(*arguments: Any) -> Any:
        found = trials(*arguments)
        return {name: found[name] for name in ("var", "vcd", "fastv", "adhh", "random_tokens")}

    monkeypatch.setattr(module, "trials", chosen)


@pytest.mark.usefixtures("few")
def test_an_embedded_model() -> None:
    result = cli("check", "--model", "tiny-llava")
    assert result.exit_code == 0, result.stderr
    rows = [line.split("│")[1:3] for line in result.stdout.splitlines() if line.startswith("│")]
    said = {name.strip(): verdict.strip() for name, verdict in rows}
    assert {said[name] for name in ("var", "vcd", "fastv", "random_tokens")} == {"works"}
    assert said["explicit rows"] == said["no image"] == said["pruning of nothing"] == "yes"


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_checkpoint_of_another_type(tmp_path: Path) -> None:
    """The processor is a real one, and what the model does not allow is told with the reason."""
    zoo.build("qwen3_5").save_pretrained(tmp_path)
    processor = zoo.processor("qwen3_5")
    assert processor is not None
    processor.save_pretrained(tmp_path)
    result = cli("check", "--model", tmp_path)
    assert result.exit_code == 0, result.stdout
    text = " ".join(result.stdout.replace("│", " ").split())
    assert "fastv refused FastV drops tokens, and layers of Qwen3_5TextModel keep a state" in text


def test_a_model_that_no_method_supports(tmp_path: Path) -> None:
    zoo.build("mllama").save_pretrained(tmp_path)
    processor = zoo.processor("mllama")
    assert processor is not None
    processor.save_pretrained(tmp_path)
    line = refused("check", "--model", tmp_path)
    assert "reads images by cross-attention; methods need image tokens in the prompt" in line
