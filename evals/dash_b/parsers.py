"""Parsers of DASH-B's answers, by name."""

from __future__ import annotations

from vlmfix.evaluation.tasks.yes_no_parsers import Verdict, strict


def substring_yes(text: str, target: Verdict) -> Verdict | None:
    """YanNeu/DASH-B: yes, where the letters of yes occur; else no, where those of no do."""
    lowered = text.lower()
    if "yes" in lowered:
        return "yes"
    return "no" if "no" in lowered else None


PARSERS = {"strict": strict, "substring_yes": substring_yes}
