"""Shared fixtures: tiny random models of every family, and the settings with which methods act on them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import pytest
import torch
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import QUICK
from vlmfix.evaluation.datasets import write_coco


@pytest.fixture(scope="session", autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)  # tiny models gain nothing from more


@pytest.fixture(autouse=True)
def _no_user_profiles(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMFIX_PROFILES", str(tmp_path_factory.mktemp("profiles")))


@pytest.fixture(scope="session")
def models() -> dict[str, PreTrainedModel]:
    """One random model of each family, built once; every test must leave them as they are."""
    return {family: families.build(family) for family in families.FAMILIES}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of another family than that of the quick subset is slow."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("family", QUICK) != QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=families.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str, models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return models[family]


@pytest.fixture(scope="session")
def loaded() -> tuple[Any, Any]:
    """The embedded model and its processor; every test must leave them as they are."""
    return vlmfix.load()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of six synthetic scenes, which tests must not change."""
    return write_coco(tmp_path_factory.mktemp("world") / "scenes", count=6, seed=77)


@pytest.fixture
def llava(models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return models["llava"]
