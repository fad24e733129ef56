"""What is calibrated for a search."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

from tests.support import families
from vlmfix.calibration.results import Calibration
from vlmfix.tuning import calibrated as module
from vlmfix.tuning.calibrated import calibrated_for
from vlmfix.tuning.candidates import Calibrated

FOUND = {
    "var": Calibration({"sink_dimensions": [3], "sink_threshold": 2.0}, "a test"),
    "adhh": Calibration({"adhh_heads": [[1, 0]]}, "a test", rankings={"adhh_heads": [[1, 0], [0, 2]]}),
}
RANKED = {"adhh": {"heads": ((1, 0), (0, 2))}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that were calibrated."""
    names: list[str] = []

    def calibrate(name: str, model: Any, processor: Any, images: list[Any]) -> Calibration:
        names.append(name)
        if name not in FOUND:
            raise ValueError("nothing to be found")
        return FOUND[name]

    monkeypatch.setattr(module, "calibrate", calibrate)
    monkeypatch.setattr(module, "_annotated", lambda world, method: ["picture"])
    return names


def world(task: str) -> Any:
    return SimpleNamespace(task=SimpleNamespace(name=task), sets=SimpleNamespace(search=[]))


def test_what_no_profile_has_is_calibrated_once_a_folder(
    llava: Any, asked: list[str], tmp_path: Path
) -> None:
    told: list[str] = []
    for _ in range(2):
        found = calibrated_for(tmp_path, llava, families.PROCESSOR, [world("chair")], told.append)
        assert found.parameters["var"] == {"sink_dimensions": [3], "sink_threshold": 2.0}
        assert found.parameters["adhh"] == {"heads": [[1, 0]]}
        assert found.rankings == RANKED
    assert sorted(asked) == ["adaiat", "adhh", "gift", "var"]
    for said in (
        "act is not calibrated: its heads are tried one by one",
        "vti is not calibrated: its directions",
    ):
        assert any(each.startswith(said) for each in told)
    assert "gift is not calibrated: nothing to be found" in told


def test_heads_are_ranked_although_a_profile_lists_some(
    loaded: tuple[Any, Any], asked: list[str], tmp_path: Path
) -> None:
    found = calibrated_for(tmp_path, *loaded, [world("chair")], lambda text: None)
    assert found == Calibrated({}, RANKED)
    assert asked == ["adhh"]


def test_no_heads_are_ranked_where_no_captions_are_judged(
    loaded: tuple[Any, Any], asked: list[str], tmp_path: Path
) -> None:
    assert calibrated_for(tmp_path, *loaded, [world("pope")], lambda text: None) == Calibrated()
    assert asked == []
