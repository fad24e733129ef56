"""What commands print as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vlmfix.cli.console import strict


def test_values_that_json_lacks() -> None:
    value = {"a": (float("nan"), float("-inf")), 1: torch.float16, "b": {"x"}, "\ud800": Path("c")}
    document = json.loads(json.dumps(strict(value), allow_nan=False, default=str))
    assert document == {"a": [None, None], "1": "torch.float16", "b": ["x"], "\\ud800": "c"}
