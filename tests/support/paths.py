"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout."""

OFFICIAL = ROOT.parent / "shared" / "data"
"""Public data files, which need not be there."""
