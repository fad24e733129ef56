"""Patch Matters: captions divided, described and aggregated."""
