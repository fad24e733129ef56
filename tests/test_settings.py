"""YAML as people write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmfix.settings import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-1", 0.1),
        ("-1E+3", -1000.0),
        ("[2e-1, .5, 5.]", [0.2, 0.5, 5.0]),
        ("010", 10),  # of base 8 in YAML 1.1
        ("0x10", 16),
        ("1_000", 1000),
        ("1:30", "1:30"),  # of base 60 in YAML 1.1
        ("yes", True),
        ("{<<: {a: 1}, a: 2}", {"a": 2}),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{a: 1, a: 2}", "the key 'a' comes twice"),
        ("x: 1\ny:\n  - b: 1\n    b: 2", "line 4: the key 'b' comes twice"),
        (".nan", "is no finite number"),
        ("[-.inf]", "is no finite number"),
        ("1e999", "is no finite number"),
        ("[" * 5000, "nested too deeply"),
        ('"\\ud800"', "lone surrogate"),
        ("2024-13-45", "month must be in"),
        ("!!bool maybe", "maybe"),
        ("*nothing", "undefined alias"),
        ("9" * 5000, "4300 digits"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1e-1")
    assert read_yaml(path) == {"a": 0.1}
    path.write_bytes("a: 1".encode("utf-16"))
    with pytest.raises(ValueError, match=r"x\.yaml is no YAML .*is not UTF-8"):
        read_yaml(path)
