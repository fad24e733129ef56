"""`vlmfix tune`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support import jobs
from vlmfix.evaluation.datasets.coco import write_coco

pytest.importorskip("optuna")

FEW = ("--search-images", "10", "--choice-images", "10", "--test-images", "12", "--trials", "4")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("tune") / "mine", count=80, seed=5)


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "profiles"
    folder.mkdir()
    monkeypatch.setenv("VLMFIX_PROFILES", str(folder))
    return folder


def tuned(pictures: Path, output: Path, *arguments: str) -> jobs.Result:
    return jobs.cli("tune", "--data", pictures, "--output", output, *FEW, *arguments)


@pytest.mark.slow
def test_from_annotated_pictures_to_a_recipe(pictures: Path, profiles: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    # The words of captions stand in for a metric that some method is sure to improve on ten pictures.
    result = tuned(pictures, output, "--objective", "recall", "--keep", "words <= 9")
    assert result.exit_code == 0, result.stderr
    results = json.loads((output / "results.json").read_text())
    assert [trial["number"] for trial in results["trials"]] == list(range(4))
    assert "<html" in (output / "tune.html").read_text()
    if results["chosen"] is None:
        assert "there is no recipe" in result.stdout
        assert not (output / "recipe.yaml").exists()
        assert results["test"] == []
    else:
        recipe = yaml.safe_load((output / "recipe.yaml").read_text())
        assert recipe["task"] == "chair"
        [table] = results["test"]
        assert table["images"] == 12
        assert table["rows"][0]["label"] == "greedy"
        assert list((profiles / "recipes").glob("*.yaml"))
    again = tuned(pictures, output, "--objective", "recall", "--keep", "words <= 9")
    assert again.exit_code == 0, again.stderr
    assert json.loads((output / "results.json").read_text()) == results


@pytest.mark.slow
def test_questions_are_answered_under_a_fitted_offset(pictures: Path, profiles: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = tuned(pictures, output, "--task", "pope", "--trials", "2")
    assert result.exit_code == 0, result.stderr
    results = json.loads((output / "results.json").read_text())
    assert results["objective"] == ["AUC"]
    greedy = results["trials"][0]["figures"]["mine"]
    assert 0.5 < greedy["AUC"] <= 1
    assert greedy["accuracy"] > 0.8  # without an offset it is 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "chiar"), "chiar"),
        (("--objective", "chair_x"), "there is no metric 'chair_x'"),
        (("--keep", "recall > 1"), "is not METRIC >= NUMBER"),
        (("--budget", "soon"), "--budget is 'soon'; it must be a time such as 90s, 20m or 2h"),
        (("--shard", "2/2"), "--shard is '2/2'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(
    arguments: tuple[str, ...], message: str, pictures: Path, tmp_path: Path
) -> None:
    result = tuned(pictures, tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") <= 2
    assert not (tmp_path / "run" / "tune.json").exists()  # a mistake does not take the folder


def test_a_folder_holds_one_search(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "tune.json").write_text(json.dumps({"task": "pope"}))
    result = tuned(pictures, output)
    assert result.exit_code == 2
    assert "holds another search" in result.stderr
    assert "choose another --output" in result.stderr
