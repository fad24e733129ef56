"""The table of effects: its intervals, the choice of settings, and a job that resumes where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import vlmfix
from benchmarks import bootstrap, effects, matched
from benchmarks.answers import Speaker, Split
from benchmarks.bootstrap import Ratio, compare, resample
from benchmarks.grid import CONTROLS
from benchmarks.judging import COLUMNS, judge
from benchmarks.matched import MATCHED, RANDOM, SMALLER, cut, pooled, random_choices, shifted
from training import report

pytestmark = pytest.mark.slow

COUNTS = np.random.default_rng(5).integers(0, 4, size=(4, 30)).astype(float)


def start(output: Path, *options: str) -> Result:
    app = typer.Typer()
    app.command()(effects.main)
    return CliRunner().invoke(
        app, ["--output", str(output), "--method", "var", "--validation", "3", "--test", "4", *options]
    )


def rows(result: Result) -> dict[str, list[str]]:
    """Cells of the printed table by method."""
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {first.removeprefix("| "): rest for first, *rest in cells}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of prompts that the model is asked; it says the same about everything."""
    asked: list[int] = []

    def generate(
        model: Any, processor: Any, images: Any, prompts: list[str], *rest: Any, **kwargs: Any
    ) -> list[str]:
        asked.append(len(prompts))
        return ["Yes, a dog and a cup."] * len(prompts)

    monkeypatch.setattr(vlmfix, "generate", generate)
    monkeypatch.setattr(Speaker, "margins", lambda self, split: [0.5] * len(split.items))
    return asked


@pytest.fixture(autouse=True)
def _one_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "CONTROLS", CONTROLS[:1])
    monkeypatch.setattr(matched, "DRAWS", 1)


def test_resamples_draw_as_many_scenes_as_there_are() -> None:
    weights = resample(30)
    assert weights.shape == (bootstrap.RESAMPLES, 30)
    assert (weights.sum(axis=1) == 30).all()
    assert (weights == resample(30)).all()


def test_constant_difference_has_an_interval_of_no_width() -> None:
    wholes = np.ones(30)
    estimate = compare(Ratio(COUNTS[0] + 0.25, wholes), Ratio(COUNTS[0], wholes), resample(30))
    assert estimate.value == pytest.approx(COUNTS[0].mean() + 0.25)
    assert (estimate.difference, estimate.low, estimate.high) == pytest.approx((0.25, 0.25, 0.25))


def test_interval_of_a_ratio_is_that_of_a_loop_over_resampled_scenes() -> None:
    weights = resample(30)
    method, greedy = Ratio(COUNTS[0], COUNTS[1] + 1), Ratio(COUNTS[2], COUNTS[3] + 1)
    differences = []
    for drawn in weights:
        scenes = np.repeat(np.arange(30), drawn.astype(int))
        values = [
            sum(r.parts[i] for i in scenes) / sum(r.wholes[i] for i in scenes) for r in (method, greedy)
        ]
        differences.append(values[0] - values[1])
    estimate = compare(method, greedy, weights)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])))
    assert estimate.low < estimate.difference < estimate.high


def test_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    estimate = compare(Ratio(values, np.ones(1000)), Ratio(np.zeros(1000), np.ones(1000)), resample(1000))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 1000**0.5, rel=0.06)


def test_ratio_of_nothing_is_zero() -> None:
    assert Ratio(np.zeros(3), np.zeros(3)).value == 0


def test_columns_are_those_of_the_report_of_the_training() -> None:
    split = Split("test", 11, 40)
    captions = [f"There is a dog, a fork and {len(scene.objects)} cups." for scene in split.scenes]
    captions[0] = "Nothing."
    verdicts = ["Yes" if index % 3 else "no" for index in range(len(split.items))]
    values = {name: ratio.value for name, ratio in judge(split, captions, verdicts).items()}
    expected = report.caption_numbers(split.scenes, captions)
    assert values["CHAIRi"] == pytest.approx(expected["CHAIRi"])
    assert values["recall"] == pytest.approx(expected["caption recall"])
    assert values["words"] == pytest.approx(expected["caption words"])
    asked = iter(verdicts)
    accuracy, yes = report.accuracy(
        lambda images, prompts, tokens: [next(asked) for _ in prompts],  # type: ignore[arg-type]
        split.images,
        split.items,
    )
    assert (values["accuracy"], values["yes-ratio"]) == pytest.approx((accuracy, yes))


def test_shifted_greedy_says_yes_as_often() -> None:
    margins = [2.0, -0.5, 0.25, -3.0, 1.0]
    assert shifted(margins, ["Yes", "no", "No.", "Nothing", "yes"]) == ["Yes", "No", "No", "No", "Yes"]
    assert shifted(margins, ["Yes"] * 5) == ["Yes"] * 5
    assert shifted(margins, ["No"] * 5) == ["No"] * 5
    assert shifted(margins, ["Yes"] * 4 + ["No"]) == ["Yes", "Yes", "Yes", "No", "Yes"]


def test_longer_captions_are_cut_to_the_tokens_of_the_shorter() -> None:
    _, processor = vlmfix.load()
    long, short = "There is a dog. There is a cup on the table.", "There is a dog. There is a."
    assert cut([long, short, long], [short, long, long], processor.tokenizer) == [
        "There is a dog. There is a cup",
        short,
        long,
    ]


def test_margins_are_those_of_the_answers(tmp_path: Path) -> None:
    speaker, split = Speaker("tiny-llava", tmp_path, 8), Split("test", 3, 4)
    margins = speaker.margins(split)
    assert speaker.margins(split) == margins
    greedy = speaker.answers(effects.GREEDY, split, "yes-no", lambda prompts: None).texts
    assert [text.lower().startswith("yes") for text in greedy] == [margin > 0 for margin in margins]


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([(0.70, 0.20, 0.8), (0.75, 0.20, 0.8), (0.70, 0.10, 0.8)], 2),  # largest accuracy - CHAIRi
        ([(0.90, 0.00, 0.77), (0.60, 0.30, 0.79)], 1),  # gained by saying less
        ([(0.70, 0.20, 0.5), (0.60, 0.30, 0.6), (0.90, 0.00, 0.4)], 1),  # all lose recall
        ([(0.70, 0.20, 0.8), (0.70, 0.20, 0.9)], 0),  # a tie
    ],
)
def test_choice_of_a_setting(candidates: list[tuple[float, float, float]], chosen: int) -> None:
    names = ("accuracy", "CHAIRi", "recall")
    greedy = dict(zip(names, (0.7, 0.2, 0.8), strict=True))
    assert effects.choose(greedy, [dict(zip(names, each, strict=True)) for each in candidates]) == chosen


@pytest.mark.parametrize("name", list(vlmfix.list_methods()))
def test_settings_of_the_grid_can_be_built(name: str) -> None:
    for parameters in effects.GRID.get(name, []):
        vlmfix.make_method(name, **parameters)


def test_scenes_are_those_of_no_other_report() -> None:
    assert report.SEED not in (effects.SEED, effects.SEED + 1)


def test_second_start_does_only_what_is_missing(tmp_path: Path, calls: list[int]) -> None:
    first = start(tmp_path)
    settings = len(effects.GRID["var"])
    assert len(calls) == 2 * (2 + 1 + settings + 1 + 1)  # a draw of random heads
    calls.clear()
    assert start(tmp_path).stdout == first.stdout
    assert calls == []
    next((tmp_path / "tiny-llava").glob("greedy-test-captions-*")).unlink()
    assert start(tmp_path).exit_code == 0
    assert calls == [4]


@pytest.mark.parametrize("changed", ["seed", "version", "parameters", "count"])
def test_what_changes_an_answer_is_asked_again(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.setitem(effects.GRID, "var", [{}])
    assert start(tmp_path).exit_code == 0
    calls.clear()
    options = {"seed": ["--seed", "5"], "count": ["--test", "5"]}.get(changed, [])
    if changed == "version":
        monkeypatch.setattr(vlmfix, "__version__", "9.9.9")
    if changed == "parameters":
        monkeypatch.setitem(effects.GRID, "var", [{"moved_fraction": 0.9}])
    assert start(tmp_path, *options).exit_code == 0
    assert len(calls) == {"seed": 12, "version": 12, "parameters": 6, "count": 8}[changed]


def test_killed_in_the_middle_leaves_no_half_file(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.answers.os.replace", lambda *paths: 1 / 0)
    assert isinstance(start(tmp_path).exception, ZeroDivisionError)
    monkeypatch.undo()
    assert list((tmp_path / "tiny-llava").glob("*.json")) == []


def test_refused_settings_are_listed_and_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impossible = {"sink_dimensions": (100_000,)}
    monkeypatch.setitem(effects.GRID, "var", [impossible])
    cells = rows(start(tmp_path))["var"]
    assert cells[0].startswith("refused: sink_dimensions has 100000")
    monkeypatch.setitem(effects.GRID, "var", [impossible, {"moved_fraction": 0.9}])
    assert rows(start(tmp_path))["var"][0] == "moved_fraction=0.9"
    candidates = json.loads((tmp_path / "tiny-llava.json").read_text())["effects"][2]["candidates"]
    assert "100000" in candidates[0]["refused"]
    assert candidates[1]["columns"].keys() == set(COLUMNS)


@pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")
def test_method_that_never_acted_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(effects.GRID, "var", [{"moved_fraction": 0.0}])
    assert list(rows(start(tmp_path))) == ["greedy", "baseline.prompt_bias", "var (inactive)"]


def test_mistake_in_the_grid_shows_before_anything_runs(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(effects.GRID, "var", [{}, {"moved_faction": 0.9}])
    assert "did you mean 'moved_fraction'" in str(start(tmp_path).exception)
    assert calls == []


def test_small_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(effects.GRID, "var", [{"moved_fraction": 0.6}])
    result = start(tmp_path)
    assert list(rows(result)) == ["greedy", "baseline.prompt_bias", "var"]
    greedy, control, var = rows(result).values()
    columns = len(COLUMNS) + len(MATCHED) + len(RANDOM) + len(SMALLER)
    assert len(greedy) == len(control) == len(var) == 2 + columns
    assert result.stdout == (tmp_path / "tiny-llava.md").read_text()
    assert "Test bed" in result.stdout
    content = json.loads((tmp_path / "tiny-llava.json").read_text())
    plain, _, effect = content["effects"]
    assert effect["setting"] == {"method": "var", "parameters": {"moved_fraction": 0.6}}
    assert 0 < plain["columns"]["recall"]["value"] <= 1
    assert effect["matched"].keys() == {*MATCHED, *RANDOM}
    for name in effect["matched"]:
        numbers = effect["matched"][name]
        assert numbers["low"] <= numbers["difference"] <= numbers["high"]
    for name in COLUMNS:
        numbers = effect["columns"][name]
        assert numbers["low"] <= numbers["difference"] <= numbers["high"]
        assert numbers["value"] - plain["columns"][name]["value"] == pytest.approx(numbers["difference"])


def test_a_pruning_stands_against_smaller_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(effects.GRID, "uniform_grid", [{"kept_tokens": 16}])
    monkeypatch.setitem(effects.GRID, "var", [{"moved_fraction": 0.6}])
    result = start(tmp_path, "--method", "uniform_grid", "--test", "3", "--validation", "1")
    table = rows(result)
    assert all(table["uniform_grid"][-len(SMALLER) :])
    assert not any(cell.strip("|") for cell in table["var"][-len(SMALLER) :])
    assert len(list((tmp_path / "tiny-llava").glob("baseline.resize-test-*"))) == 2
    content = json.loads((tmp_path / "tiny-llava.json").read_text())
    pruning = next(each for each in content["effects"] if each["setting"]["method"] == "uniform_grid")
    assert pruning["matched"].keys() == {*MATCHED, *RANDOM, *SMALLER}


def estimate(difference: float) -> effects.Estimate:
    return effects.Estimate(0.5, difference, difference - 0.01, difference + 0.01)


@pytest.mark.parametrize(
    ("changes", "beaten"),
    [
        ({}, ["accuracy", "CHAIRi"]),
        ({"recall": -0.03}, ["accuracy"]),  # gained by saying less
        ({"accuracy": 0.005}, ["CHAIRi"]),
        ({"shifted greedy's accuracy": 0.0, "recall of random choices": -0.5}, ["CHAIRi"]),
        ({"CHAIRi of random choices": -0.005}, ["accuracy"]),
        ({"CHAIRi of smaller pictures": 0.1, "accuracy of smaller pictures": -0.1}, []),
    ],
)
def test_what_beats_everything(changes: dict[str, float], beaten: list[str]) -> None:
    good = {"accuracy": 0.1, "CHAIRi": -0.1, "recall": 0.0}
    columns = {name: estimate(changes.get(name, good.get(name, 0.0))) for name in COLUMNS}
    matched = {
        name: estimate(changes.get(name, good[of]))
        for name, of in (MATCHED | SMALLER | RANDOM).items()
        if name in MATCHED or name in changes
    }
    setting = effects.Setting("var", {})
    assert effects.Effect(setting, columns, matched, inactive=False, candidates=[]).beats == beaten
    assert effects.Effect(setting, columns, {}, inactive=False, candidates=[]).beats == []


def test_random_choices_of_what_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    [first, *_, last] = random_choices(effects.Setting("vhr", {"head_scale": 1.5}), None)
    assert first.method == "baseline.random_heads"
    assert first.parameters == {"of": "vhr", "settings": {"head_scale": 1.5}, "seed": 0}
    assert (last.parameters["seed"], len(first.build())) == (2, 1)
    assert random_choices(effects.Setting("vti", {}), None)[0].method == "baseline.random_directions"
    [tokens, *_] = random_choices(effects.Setting("fastv", {}), 12.4)
    assert (tokens.method, tokens.parameters) == ("random_tokens", {"kept_tokens": 12, "seed": 0})
    assert random_choices(effects.Setting("vcd", {}), None) == []


def test_draws_are_pooled() -> None:
    one, other = Ratio(COUNTS[0], COUNTS[1] + 1), Ratio(COUNTS[2], COUNTS[3] + 1)
    pair = pooled([{"recall": one}, {"recall": other}])["recall"]
    whole = (COUNTS[0].sum() + COUNTS[2].sum()) / (COUNTS[1].sum() + COUNTS[3].sum() + 60)
    assert pair.value == pytest.approx(whole)
