"""Shared fixtures: tiny random models of every family, the embedded model, and a world of scenes.

The process that hands tests to the workers reads this file, too, and need not import torch for it.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from more
import pytest

from tests.support.names import FAMILIES, QUICK
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

gc.disable()  # until all is imported, which would take half as long again


@pytest.fixture(autouse=True)
def _no_user_profiles(
    _profiles: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _profiles / str(id(request.node))
    folder.mkdir()
    monkeypatch.setenv("VLMFIX_PROFILES", str(folder))


@pytest.fixture(scope="session")
def _profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="session")
def models() -> dict[str, PreTrainedModel]:
    """One random model of each family, built once; every test must leave them as they are."""
    from tests.support import families

    return {family: families.build(family) for family in FAMILIES}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test of another family than that of the quick subset is slow; tests of the whole come first, as
    they take longest, and a worker that gets one at the end is waited for."""
    if "support" not in config.getoption("markexpr"):
        items[:] = [item for item in items if item.get_closest_marker("support") is None]
    items.sort(key=lambda item: len(item.path.relative_to(ROOT).parts))
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("family", QUICK) != QUICK:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported is there to stay: the collector need not look at it again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str, models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return models[family]


@pytest.fixture(scope="session")
def loaded() -> tuple[Any, Any]:
    """The embedded model and its processor; every test must leave them as they are."""
    import vlmfix

    return vlmfix.load()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of six synthetic scenes with a yes and a no about each in each split of POPE, which tests
    must not change."""
    from vlmfix.evals.pope.questions import build_pope, write_pope

    from vlmfix.evaluation.datasets import write_coco
    from vlmfix.evaluation.datasets.annotations import read_instances

    folder = write_coco(tmp_path_factory.mktemp("world") / "scenes", count=6, seed=77)
    instances = read_instances(folder / "instances.json")
    objects = {instances.file_names[image]: names for image, names in instances.objects.items()}
    write_pope(build_pope(objects, images=6, per_image=1, min_objects=1), folder, "synthetic")
    return folder


@pytest.fixture
def llava(models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return models["llava"]
