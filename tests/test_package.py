"""What the package promises of itself."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import vlmfix

ROOT = Path(__file__).parents[1]


def test_every_method_is_exported_and_described() -> None:
    for name, cls in vlmfix.methods().items():
        assert getattr(vlmfix, cls.__name__) is cls
        assert cls.__name__ in vlmfix.__all__
        assert cls.card.paper in (cls.__doc__ or "")
        assert cls.neutral
        assert f"| `{name}` |" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_version_is_in_the_changelog() -> None:
    assert f"## {vlmfix.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_wheel_holds_configs_weights_and_the_command_line(tmp_path: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"cli.py", "evals/data/scenes.py", "vlmfix/configs/models/llava-1.5-7b.yaml"}
    expected |= {f"vlmfix/models/{name}/model.safetensors" for name in ("tiny-llava", "tiny-qwen2.5-vl")}
    assert expected <= names
    assert not any(name.startswith(("tests/", "training/", "benchmarks/")) for name in names)
