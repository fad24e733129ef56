"""What the package promises of itself."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import vlmfix
from tests.support.paths import ROOT
from vlmfix.cli.display import methods_markdown
from vlmfix.models.loading import EMBEDDED


def test_every_method_is_exported_and_described() -> None:
    for cls in vlmfix.list_methods().values():
        assert getattr(vlmfix, cls.__name__) is cls
        assert cls.__name__ in vlmfix.__all__
        assert cls.info.paper in "".join((cls.__doc__ or "").split())
        assert cls.identity_parameters or not cls.attaches
    # 'vlmfix methods --markdown' prints it.
    assert methods_markdown() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_version_is_in_the_changelog() -> None:
    assert f"## {vlmfix.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_wheel_holds_what_it_needs_and_finds_it(tmp_path: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = set(archive.namelist())
    expected = {"vlmfix/evals/pope/task.py", "vlmfix/configs/models/llava-1.5-7b.yaml"}
    expected |= {f"vlmfix/models/{name}/model.safetensors" for name in EMBEDDED}
    assert expected <= names
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in names} == {"vlmfix"}
    code = "from vlmfix.models.profiles import profiles\nfor profile in profiles(): print(profile.path)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert found
    assert all(Path(path).parent == installed / "vlmfix" / "configs" / "models" for path in found)
