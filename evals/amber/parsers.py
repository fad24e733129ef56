"""Parsers that read an answer to a question of AMBER."""

from __future__ import annotations

from vlmfix.evaluation.tasks.yes_no_parsers import Verdict, strict, vlmevalkit


def amber_official(text: str, target: Verdict) -> Verdict | None:
    """The official script: exactly Yes or No; everything else is wrong, "yes" and "No." too."""
    if text == "Yes":
        return "yes"
    return "no" if text == "No" else None


PARSERS = {"strict": strict, "vlmevalkit": vlmevalkit, "amber_official": amber_official}
