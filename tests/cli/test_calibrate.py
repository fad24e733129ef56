"""`vlmfix scenes` and `vlmfix calibrate`."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support import jobs
from vlmfix.calibration.calibrate import CALIBRATIONS
from vlmfix.cli.calibrate import CALIBRATED


def test_scenes_and_calibration(tmp_path: Path) -> None:
    result = jobs.cli("scenes", "--count", "4", "--seed", "3", "--output", tmp_path / "world")
    assert result.exit_code == 0, result.stderr
    assert len(list((tmp_path / "world" / "images").iterdir())) == 4
    again = jobs.cli("scenes", "--count", "4", "--output", tmp_path / "world")
    assert again.exit_code == 2
    profile = tmp_path / "profile.yaml"
    result = jobs.cli("calibrate", "--images", tmp_path / "world" / "images", "--output", profile)
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load(profile.read_text())["values"]["sink_dimensions"]["value"]


def test_help_names_every_method_that_can_be_calibrated() -> None:
    assert set(CALIBRATED) == set(CALIBRATIONS)
