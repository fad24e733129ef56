"""What works on a tiny random model of a type: self-tests, and a run of every method."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch

import vlmfix
from tests.support import zoo
from tests.support.methods import ACTING, ATTACHED
from vlmfix.engine.compatibility import check_model
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import Method
from vlmfix.probe.self_tests import Probe, ProbeInputs, SelfTest, self_tests
from vlmfix.probe.verdicts import Verdict, verdicts

# Random models of the zoo have no sinks of their own, and few image tokens.
SETTINGS: dict[str, dict[str, Any]] = ACTING | {
    "var": ACTING["var"] | {"sink_threshold": 0.5, "min_image_mass": 0.0, "min_non_sink_share": 0.0},
    "opera": {"penalty_weights": 1000.0, "scale_factor": 500.0},
    "adaptinfer": {"prune_layers": (1, 2), "kept_tokens": (2, 1)},
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the matrix.

    Args:
        name: of the type, or a variant of one.
        refused: why no method supports it; "": some do.
        tests: the self-tests.
        verdicts: one for each method.
    """

    name: str
    refused: str
    tests: Sequence[SelfTest] = ()
    verdicts: Sequence[Verdict] = ()


def methods(names: Sequence[str] = ATTACHED) -> dict[str, Method]:
    """Methods by name, at settings with which they act on a random model."""
    classes = vlmfix.list_methods()
    return {name: classes[name](**SETTINGS.get(name, {})) for name in names}


def probe(name: str) -> Probe:
    """A tiny random model of a type with two prompts for it, of one and two pictures where it takes two.

    Raises:
        UnsupportedError: no method supports it.
    """
    model = zoo.build(name)
    check_model(model)
    counts = (1, 1) if zoo.TYPES[name].one_image else (1, 2)
    batch = zoo.prompt(name, model, counts)
    generator = torch.Generator().manual_seed(1)
    others = {
        key: torch.where(value == 0, value, value + torch.randn(value.shape, generator=generator))
        if "pixel" in key and "mask" not in key and value.is_floating_point()
        else value
        for key, value in batch.items()
    }
    inputs = ProbeInputs(batch, zoo.split(name, model, batch), zoo.without_images(name, model, batch), others)
    return Probe(model, zoo.processor(name), inputs)


def row(name: str, names: Sequence[str] = ATTACHED) -> Row:
    """The line of a type, with the methods of these names."""
    try:
        tried = probe(name)
    except UnsupportedError as error:
        return Row(name, str(error))
    tests = self_tests(tried)
    return Row(name, "", tests, list(verdicts(tried, tests, methods(names))))


def stages() -> dict[str, list[str]]:
    """Names of the methods that act in `generate`, by stage."""
    classes = vlmfix.list_methods()

    def stage(name: str) -> str:
        return classes[name].info.stage

    ordered = sorted(ATTACHED, key=stage)
    return {each: list(group) for each, group in itertools.groupby(ordered, stage)}
