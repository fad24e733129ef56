"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout."""

BENCHMARKS = sorted(path.parent.name for path in (ROOT / "evals").glob("*/task.py"))
"""Names of the benchmarks here."""

OFFICIAL = ROOT.parent / "shared" / "data"
"""Public data files, which need not be there."""
