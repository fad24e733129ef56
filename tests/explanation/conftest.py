"""An embedded model of either kind, the demo scene, and an explanation of it."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import vlmfix
from vlmfix.evaluation.datasets import demo_scene, render
from vlmfix.models.embedded import EMBEDDED


@pytest.fixture(scope="session")
def scene() -> Image.Image:
    return render(demo_scene())


@pytest.fixture(scope="session", params=EMBEDDED)
def embedded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model and its processor; tests leave them as they are."""
    return vlmfix.load(request.param, dtype="float32")


@pytest.fixture(scope="session")
def explained(loaded: tuple[Any, Any], scene: Image.Image) -> vlmfix.Explanation:
    """The demo scene under VAR, without a test of its maps."""
    from vlmfix.evals.chair.explained_objects import demo_objects

    return vlmfix.explain(*loaded, scene, method="var", objects=demo_objects(), name="tiny-llava")


@pytest.fixture(scope="session")
def tested(loaded: tuple[Any, Any], scene: Image.Image) -> vlmfix.Explanation:
    """The demo scene with a test of its maps; takes seconds."""
    return vlmfix.explain(*loaded, scene, faithfulness=True, word="couch", name="tiny-llava")
