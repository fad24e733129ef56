"""Verdicts: which methods act on a loaded model, by running them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from vlmfix.engine.capabilities import (
    AddsAuxiliaryPrompt,
    ChoosesTokens,
    PrunesTokens,
    ReadsEarlyExits,
    ReadsLastRowAgain,
)
from vlmfix.engine.method import MethodHooks
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import Method
from vlmfix.probe.self_tests import Probe, SelfTest

State = Literal["works", "idle", "refused", "fails"]


class Verdict(NamedTuple):
    """Whether a method works on a model.

    Args:
        method: its name.
        state: "works": it acted, and batches equal single prompts; "idle": it found nothing to do in the
            prompts of the probe; "refused": with the reason for which attaching or generating refuses it;
            "fails": what it does cannot be relied on.
        reason: in words; of a method that works, with which values, where these are not its defaults.
    """

    method: str
    state: State
    reason: str


def verdicts(probe: Probe, tests: Sequence[SelfTest], methods: Mapping[str, Method]) -> Iterator[Verdict]:
    """Run methods one by one on the prompts of a probe.

    Args:
        tests: what the self-tests gave.
        methods: by name, with the values to be tried.
    """
    found = {test.name: test for test in tests}
    for name, method in methods.items():
        yield _verdict(probe, found, name, method)


def _verdict(probe: Probe, tests: Mapping[str, SelfTest], name: str, method: Method) -> Verdict:
    difference = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            together = probe.answer(method)
            acted = not method.edits or bool(method.edit_stats().rows_touched)
            if together is not None and acted and tests["stock model, batch as single prompts"].passed:
                difference = probe.difference(probe.singles(method), together)
        except (UnsupportedError, ValueError) as error:
            return Verdict(name, "refused", " ".join(str(error).split()))
        except Exception as error:  # whatever an unknown model does with what it is given
            words = " ".join(str(error).split())[:200]
            return Verdict(name, "fails", f"{type(error).__name__}: {words}")
    fault = next((fault for need in needs(method) if (fault := _fault(tests.get(need)))), None)
    if fault is not None:
        return Verdict(name, "fails", fault)
    if not acted:
        said = [" ".join(str(each.message).split()) for each in caught]
        return Verdict(name, "idle", next((text for text in said if type(method).__name__ in text), ""))
    if difference is not None and difference > 10 * probe.tolerance:
        return Verdict(
            name, "fails", f"logits of a batch differ from those of single prompts by {difference:.1e}"
        )
    defaults = type(method)().parameters
    values = [f"{key}={value}" for key, value in method.parameters.items() if value != defaults[key]]
    return Verdict(name, "works", f"with {', '.join(values)}" if values else "")


def needs(method: MethodHooks) -> list[str]:
    """The self-tests that must hold for a method."""
    kind = type(method)
    wanted = {
        "other images change the logits": True,
        "explicit rows": method.edits_attention or method.observes,
        "outputs of heads": kind.edit_heads is not MethodHooks.edit_heads,
        "same prompt": kind.branches is not MethodHooks.branches,
        "same images": kind.branches is not MethodHooks.branches,
        "no image": kind.branches is not MethodHooks.branches,
        "pruning of nothing": isinstance(method, PrunesTokens),
        "second prompt": isinstance(method, AddsAuxiliaryPrompt),
        "last row again": isinstance(method, ReadsLastRowAgain),
        "early exit": isinstance(method, ReadsEarlyExits),
    }
    return [name for name, wants in wanted.items() if wants and not isinstance(method, ChoosesTokens)]


def _fault(test: SelfTest | None) -> str | None:
    """What a self-test says against a method that needs it; what was refused, its own run refuses."""
    if test is None or test.passed or test.refused:
        return None
    return f"self-test '{test.name}': {test.reason}"
