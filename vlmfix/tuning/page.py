"""The results of a search as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmfix.atomic import write_text


def write_page(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        summary: the content of `results.json`, see `vlmfix.tuning.write.write_results`.
    """
    write_text(path, "")
