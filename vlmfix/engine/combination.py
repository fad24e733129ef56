"""Combinations of methods that cannot act together on any model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from vlmfix.engine.capabilities import (
    AsksSeveralTimes,
    ChangesPictures,
    ChoosesTokens,
    PrunesTokens,
    RemembersSequences,
    edits_encoder,
    reads_encoder,
)
from vlmfix.engine.method import MethodHooks
from vlmfix.errors import UnsupportedError


def check_combination(methods: Sequence[MethodHooks]) -> None:
    """Refuse methods that do not go together, in the order of attachment.

    Raises:
        UnsupportedError: with the reason and the remedy.
    """
    acting = [method for method in methods if not method.is_identity]
    for other, method in combinations(acting, 2):
        check_pair(other, method)


def check_pair(other: MethodHooks, method: MethodHooks) -> None:
    """Refuse a method that does not go with another one that is attached before it.

    Raises:
        UnsupportedError: with the reason and the remedy.
    """
    name, other_name = type(method).__name__, type(other).__name__
    if type(other) is type(method):
        raise UnsupportedError(
            f"{name} is attached to this model already; leave that block before entering another"
        )
    if isinstance(method, AsksSeveralTimes) and isinstance(other, AsksSeveralTimes):
        raise UnsupportedError(f"{other_name} and {name} ask the model several times each; use one of them")
    if method.owns_logits and other.owns_logits and not method.follows_logits:
        raise UnsupportedError(
            f"{other_name} defines the logits of this model already, and {name} would, too; use one of them "
            "at a time"
        )
    for one, another in ((method, other), (other, method)):
        if isinstance(one, ChangesPictures) and isinstance(another, AsksSeveralTimes | ChangesPictures):
            raise UnsupportedError(
                f"{type(one).__name__} and {type(another).__name__} change the pictures each; use one of them"
            )
        if isinstance(one, ChoosesTokens) and another.is_gated:
            kind, value = ("act_on", another.act_on) if another.gate is None else ("gate", str(another.gate))
            raise UnsupportedError(
                f"{type(one).__name__} tries tokens and takes them back, which the {kind} of "
                f"{type(another).__name__} does not follow; leave out {value!r}"
            )
        if isinstance(one, ChoosesTokens) and isinstance(another, RemembersSequences):
            raise UnsupportedError(
                f"{type(one).__name__} tries tokens and takes them back, and {type(another).__name__} would "
                "remember them; use one of them at a time"
            )
        if isinstance(one, ChoosesTokens) and another.owns_logits:
            raise UnsupportedError(
                f"{type(one).__name__} tries tokens and takes them back, which {type(another).__name__}, "
                "which defines the logits, does not follow; use one of them at a time"
            )
    if isinstance(method, PrunesTokens) and isinstance(other, PrunesTokens):
        raise UnsupportedError(
            f"{other_name} drops image tokens of this model already, and the counts of {name} would refer "
            "to tokens that are gone; use one method that drops or merges tokens at a time"
        )
    changing = [edits_encoder(each) for each in (method, other)]
    reading = [reads_encoder(each) for each in (method, other)]
    if all(changing) or (any(changing) and any(reading)):
        raise UnsupportedError(
            f"{other_name} and {name} work on the vision encoder, and one changes it; use one at a time"
        )
