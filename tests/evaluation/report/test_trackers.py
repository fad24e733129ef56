"""Trackers: what they receive, and that none of them can spoil a job."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from accelerate import PartialState, tracking
from accelerate.utils import LoggerType

from tests.support import jobs
from vlmfix.evaluation.report.trackers import TRACKERS, check_trackers


class Fake(tracking.GeneralTracker):
    """Remembers what it is told."""

    name = "fake"
    requires_logging_directory = False
    made: ClassVar[list[Fake]] = []

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.settings: dict[str, Any] = {}
        self.figures: dict[str, Any] = {}
        self.artifacts: list[str] = []
        self.told: list[str] = []
        Fake.made.append(self)

    @property
    def tracker(self) -> Any:
        return None

    @tracking.on_main_process
    def start(self) -> None:
        self.told.append("start")

    @tracking.on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings |= values

    @tracking.on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **further: Any) -> None:
        self.figures |= values

    @tracking.on_main_process
    def log_artifact(self, path: str) -> None:
        self.artifacts.append(path)

    def finish(self) -> None:
        self.told.append("finish")


class Broken(Fake):
    """A server that is away."""

    def log(self, values: dict[str, Any], step: int | None = None, **further: Any) -> None:
        raise ConnectionError("no route\nto the server")


@pytest.fixture(autouse=True)
def _no_state() -> Iterator[None]:
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.fixture
def _fakes(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes in the place of the packages."""
    jobs.load_once(loaded, monkeypatch)
    Fake.made.clear()
    for name in TRACKERS:
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType(name) for name in TRACKERS])


def evaluate(output: Path, world: Path, *trackers: str) -> Any:
    chosen = [word for name in trackers for word in ("--tracker", name)]
    options = ("--method", "greedy", "--method", "var", "--set", "var.moved_fraction=0.6", "--no-baselines")
    return jobs.evaluate(output, "pope", "--data", world, "--limit", 20, *options, *chosen)


@pytest.mark.usefixtures("_fakes")
def test_they_receive_figures_settings_and_the_page(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = evaluate(output, world, "mlflow", "trackio", "mlflow")
    assert "note" not in result.stderr
    mlflow, trackio = Fake.made
    assert mlflow.arguments == {"experiment_name": "vlmfix", "run_name": "out"}
    assert trackio.arguments == {"run_name": "vlmfix", "name": "out"}
    assert mlflow.artifacts == [str(output / "report.html")]
    assert trackio.artifacts == []
    [task] = jobs.read(output / "metrics.json")["tasks"]
    for tracker in Fake.made:
        assert tracker.told == ["start", "finish"]
        assert tracker.settings["job.limit"] == "20"
        assert tracker.settings["model.id"] == "tiny-llava"
        assert tracker.settings["protocol.pope"] == "pope.tiny/synthetic"
        assert tracker.settings["report"] == str(output / "report.html")
        assert all(isinstance(each, bool | int | float | str) for each in tracker.settings.values())
        assert all(math.isfinite(each) for each in tracker.figures.values())
        for method, name in zip(task["methods"], ("greedy", "var_moved_fraction_0.6"), strict=True):
            [accuracy] = [
                each for each in method["metrics"] if (each["name"], each["group"]) == ("accuracy", "")
            ]
            assert accuracy["low"] is not None
            for end, field in (("", "value"), ("/low", "low"), ("/high", "high")):
                assert tracker.figures[f"pope/{name}/accuracy{end}"] == accuracy[field]


@pytest.mark.usefixtures("_fakes")
def test_what_a_tracker_has_is_not_given_to_it_again(world: Path, tmp_path: Path) -> None:
    evaluate(tmp_path, world, "mlflow")
    result = evaluate(tmp_path, world, "mlflow", "trackio")
    assert len(Fake.made) == 2
    logged = tmp_path / "trackers" / "logged.json"
    assert f"note: mlflow has these figures already; delete {logged} to log them again" in result.stderr
    logged.unlink()
    evaluate(tmp_path, world, "mlflow")
    assert len(Fake.made) == 3


@pytest.mark.usefixtures("_fakes")
def test_one_that_fails_loses_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Broken)
    result = evaluate(tmp_path, world, "trackio", "mlflow")
    [line] = [line for line in result.stderr.splitlines() if "note" in line]
    assert line == (
        f"note: trackio did not take the report (no route to the server); all results are in {tmp_path}"
    )
    assert "report.html, metrics.json, costs.json" in result.stdout
    assert Fake.made[0].told == ["start", "finish"]
    assert Fake.made[1].artifacts
    assert set(jobs.read(tmp_path / "trackers" / "logged.json")) == {"mlflow"}


@pytest.mark.usefixtures("_fakes")
def test_wandb_shows_the_page(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(Html=lambda page, inject: pages.append(page) or "page")
    )
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    output = tmp_path / "out"
    evaluate(output, world, "wandb")
    [wandb] = Fake.made
    assert wandb.arguments == {"run_name": "ours", "name": "out", "dir": str(output / "trackers")}
    assert wandb.figures["report"] == "page"
    assert pages == [(output / "report.html").read_text(encoding="utf-8")]


@pytest.mark.usefixtures("_fakes")
def test_the_last_of_several_workers_waits_for_nobody(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trackers ask accelerate whether they are first; it would meet the other processes, which have ended."""
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 4, "--shard", "0/2")
    result = jobs.evaluate(tmp_path, "pope", "--data", world, "--limit", 4, "--tracker", "mlflow")
    assert "note" not in result.stderr
    [tracker] = Fake.made
    assert tracker.artifacts
    assert told.items() <= os.environ.items()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_told_before_any_work(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    output = tmp_path / "out"
    said = jobs.refused("eval", "pope", "--data", world, "--output", output, "--tracker", name)
    assert (
        f"--tracker {name} needs the package {name}, which is not installed; pip install {name}, or" in said
    )
    assert not output.exists()


def test_one_that_nobody_knows_is_refused() -> None:
    with pytest.raises(
        ValueError, match="--tracker is 'comet'; it must be one of wandb, mlflow, tensorboard"
    ):
        check_trackers(["comet"])


def test_tensorboard(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    jobs.load_once(loaded, monkeypatch)
    output = tmp_path / "out"
    result = evaluate(output, world, "tensorboard")
    assert "note" not in result.stderr
    events = EventAccumulator(str(output / "trackers" / "out"))
    events.Reload()
    [accuracy] = events.Scalars("pope/greedy/accuracy")
    found = {each["name"]: each["value"] for each in jobs.results(output)["metrics"] if not each["group"]}
    assert accuracy.value == pytest.approx(found["accuracy"])
