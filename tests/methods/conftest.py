"""Formulas are tried on the two families that are unlike; promises name their families themselves."""

from __future__ import annotations

import pytest

from tests.support.names import UNLIKE


@pytest.fixture(params=UNLIKE)
def family(request: pytest.FixtureRequest) -> str:
    return request.param
