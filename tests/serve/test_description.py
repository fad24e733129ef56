"""The OpenAPI description: schemathesis makes requests from it, and no response may contradict it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="needs pip install schemathesis")

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.serving import NAME
from vlmfix.serve.service import Service

CHAT = "/v1/chat/completions"
PATHS = {"/v1/models", "/v1/models/{model}", CHAT, "/health", "/ready", "/metrics"}


def test_it_has_all_paths_and_errors(server: tuple[str, Service]) -> None:
    found = httpx.get(f"{server[0]}/openapi.json").json()
    assert set(found["paths"]) == PATHS
    responses = found["paths"][CHAT]["post"]["responses"]
    assert set(responses) == {*map(str, (200, 400, 401, 404, 408, 413, 422, 429, 500, 503))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "mode"),
    # Nothing about a request without a body is wrong.
    [*((path, GenerationMode.POSITIVE) for path in sorted(PATHS)), (CHAT, GenerationMode.NEGATIVE)],
    ids=str,
)
def test_responses_are_as_described(server: tuple[str, Service], path: str, mode: GenerationMode) -> None:
    """What no description can say, such as in which order messages stand, is refused all the same."""
    schema = schemathesis.openapi.from_url(f"{server[0]}/openapi.json")
    operation = schema[path]["POST" if path == CHAT else "GET"]
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=60 if path == CHAT else 5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def call(case: Any) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            case.body |= {"model": NAME, "max_tokens": 2, "max_completion_tokens": 2}
        response = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        statuses[response.status_code] += 1

    call()
    if path == CHAT:
        assert statuses[200 if mode is GenerationMode.POSITIVE else 422] > 5, statuses
