"""`vlmfix methods`: the table, and what works on a model."""

from __future__ import annotations

import re

import vlmfix
from tests.support import jobs


def test_which_methods_work_on_a_model() -> None:
    result = jobs.cli("methods", "--model", "tiny-llava")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.replace("│", " ").split())
    assert re.search(
        r"var yes sink_threshold = 6.5 .* of profile tiny-llava, by type and shape: \[23, 117", text
    )
    assert "pyramid_drop no no schedule of PyramidDrop is published for 8 layers" in text
    assert re.search("weights: sampled-sha256:[0-9a-f]{32}$", text)


def test_methods_table() -> None:
    result = jobs.cli("methods")
    assert result.exit_code == 0
    for name, cls in vlmfix.list_methods().items():
        assert name in result.stdout
        assert cls.info.paper[:20] in result.stdout  # a long address goes on in the next line
