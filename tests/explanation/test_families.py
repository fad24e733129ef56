"""Models with tiles, with layers that do not attend, and with text that is not causal."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import vlmfix
from tests.support import zoo

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8))


def explained(name: str) -> vlmfix.Explanation:
    processor = zoo.processor(name)
    assert processor is not None
    answer = "w7 w8 w9 w44"
    return vlmfix.explain(
        zoo.build(name), processor, PICTURE, "w5 w9 w60", "vcd", answer=answer, max_new_tokens=4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "gemma3"])
def test_other_families(name: str) -> None:
    found = explained(name)
    assert {"band", "rollout", "contrast"} <= set(found.maps)
    assert found.plain.shares is not None
    np.testing.assert_allclose(found.plain.shares.sum(axis=1), 1, atol=1e-5)
    assert found.saliency("contrast", "w8").shape == (80, 120)
    assert found.cells.of_tokens(found.values("band", "w8")).shape == found.cells.shape
    assert "w44" in found.html()


@pytest.mark.slow
def test_layers_that_do_not_attend_are_left_out() -> None:
    found = explained("qwen3_5")
    depth = 4
    assert 0 < len(found.layers) < depth
    assert len(found.sinks.first) == len(found.layers)
    assert "keep" in found.left_out["vision-aware heads"]
    assert found.left_out["vision-aware heads"] in found.html()


@pytest.mark.slow
def test_text_that_sees_ahead_is_refused() -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="text of this model sees later text"):
        explained("paligemma")
