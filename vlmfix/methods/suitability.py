"""Which methods work on a model, with which values, and where these come from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import Method
from vlmfix.models.profiles import find_profile


@dataclass(frozen=True)
class Suitability:
    """Whether a method works on a model.

    Args:
        works: whether it does.
        parameters: with every value filled in that depends on the checkpoint; empty where it does not work.
        profile: what of these a profile gave, see `vlmfix.models.profiles.Profile.used`.
        notes: why it does not work, or what to be warned of.
    """

    works: bool
    parameters: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def suitability(method: Method, model: PreTrainedModel, processor: ProcessorMixin) -> Suitability:
    """Attach a method to a model for a moment, and say how that went.

    Raises:
        ValueError: a profile file is broken, or `VLMFIX_PROFILES` names no folder.
    """
    profile = find_profile(model)
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("always")
        try:
            resolved = method if method.is_identity else method.resolved(model.config, profile)
            if method.attaches:
                stack.enter_context(method(model, processor))
        except (ValueError, UnsupportedError) as error:
            return Suitability(False, notes=(" ".join(str(error).split()),))
    notes = tuple(dict.fromkeys(" ".join(str(each.message).split()) for each in caught))
    return Suitability(True, resolved.parameters, {} if profile is None else profile.used, notes)


def profile_values(methods: Sequence[Method], model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """What profiles give each of some methods on a model, by the name of the method.

    Raises:
        ValueError: a value is missing or does not fit the model, or a profile file is broken.
    """
    found = {}
    for method in methods:
        profile = find_profile(model)
        if profile is not None and not method.is_identity:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # was said when the method was attached
                method.resolve(model.config, profile)
            found[method.name] = profile.used
    return {name: used for name, used in found.items() if used}
