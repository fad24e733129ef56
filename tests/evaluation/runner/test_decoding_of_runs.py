"""Rows of an evaluation decode as their names say, and manifests say how, and with which profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vlmfix
from tests.support import jobs

OPTIONS = (
    "--no-baselines",
    "--protocol",
    "chair.tiny+max_new_tokens=12",
    "--limit",
    "2",
    "--batch-size",
    "2",
)


def answers(folder: Path) -> list[str]:
    """What a run answered, in order of the samples."""
    lines = [line for path in (folder / "records").iterdir() for line in path.read_text().splitlines()]
    return [record["text"] for record in sorted(map(json.loads, lines), key=lambda record: record["id"])]


def test_settings_of_the_checkpoint_change_no_row(
    world: Path, loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaky, processor = vlmfix.load()
    leaky.generation_config.update(repetition_penalty=5.0, num_beams=3, min_new_tokens=11)
    found = []
    for name, pair in (("stock", loaded), ("leaky", (leaky, processor))):
        jobs.load_once(pair, monkeypatch)
        methods = ("--method", "greedy", "--method", "var")
        result = jobs.evaluate(tmp_path / name, "chair", *methods, *OPTIONS, "--data", world)
        assert result.exit_code == 0, result.stderr
        found.append({path.name.split("-")[0]: path for path in (tmp_path / name / "chair").iterdir()})
    for method in ("greedy", "var"):
        assert answers(found[0][method]) == answers(found[1][method])
    manifest = json.loads((found[1]["var"] / "manifest.json").read_text())
    assert manifest["info"]["decoding"] == {
        "do_sample": False,
        "max_new_tokens": 12,
        "min_new_tokens": None,
        "num_beams": 1,
        "repetition_penalty": 1.0,
    }
    used = manifest["info"]["profiles"]["var"]["sink_dimensions"]
    assert (used["profile"], used["matched_by"], used["value"]) == ("tiny-llava", "type and shape", [23, 117])
    aside = {"min_new_tokens": 11, "num_beams": 3, "repetition_penalty": 5.0}
    assert manifest["key"]["model"]["generation_config_set_aside"] == aside


def test_a_row_that_searches_is_not_called_greedy(
    world: Path, loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.load_once(loaded, monkeypatch)
    options = ("--no-baselines", "--protocol", "chair.tiny+max_new_tokens=4+num_beams=2", "--limit", "1")
    result = jobs.evaluate(tmp_path, "chair", *options, "--data", world)
    assert result.exit_code == 0, result.stderr
    [run] = json.loads((tmp_path / "job.json").read_text())["runs"]
    assert run["label"] == "beam search"
    assert Path(run["path"]).name.startswith("beam-search-")
