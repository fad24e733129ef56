"""Parsers that read an answer to a question of MME."""

from __future__ import annotations

from vlmfix.evaluation.tasks.yes_no_parsers import Verdict, mme, strict


def mme_official(text: str, target: Verdict) -> Verdict | None:
    """The calculation file: the word within the first four characters, in any case; nothing is stripped."""
    start = text.lower()[:4]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else None


PARSERS = {"mme_official": mme_official, "mme": mme, "strict": strict}
