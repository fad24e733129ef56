"""Canonical JSON: one spelling of a value, with the vector of the harness specification."""

import pytest

from vlmfix.evaluation.files.hashing import canonical_json, digest

KEY = {
    "task": "pope/coco/random",
    "sample": "1",
    "seed": 0,
    "method": {"name": "var", "moved_fraction": 0.4},
}


def test_the_vector():
    assert canonical_json(KEY) == (
        '{"sample":"1","method":{"moved_fraction":0.4,"name":"var"},"seed":0,"task":"pope/coco/random"}'
    )
    assert digest(KEY) == "dacd69cbe350c33d4a6a5d4b3ec79064f8e0f703b31e77a042da2f165ff52c6e"


def test_text_is_not_escaped_and_order_does_not_matter():
    assert canonical_json({"b": "Käse\n", "a": [1, None, True]}) == '{"a":[1,null,true],"b":"Käse\\n"}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError):
        canonical_json({"a": {1, 2}})
