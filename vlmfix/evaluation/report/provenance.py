"""Provenance of results, in short: model, software, data and decoding, from the details of outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmfix.evaluation.analysis.results import Outcome

_SHORT = 19  # of hashes; they stand in full under the details


def run_provenance(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Facts of all tasks together, by name; those that no outcome knows are left out."""
    attention = {
        part: _words(_found(outcomes, "key", "model", "attention", part)) for part in ("text", "vision")
    }
    software = {"vlmfix": _words(_found(outcomes, "key", "library"))}
    devices = []
    for environment in (each for several in _found(outcomes, "environments") for each in several):
        devices.append(environment.get("device"))
        software |= {name: environment.get(name) for name in ("torch", "transformers")}
    started = sorted(map(str, _found(outcomes, "info", "started_at")))
    provenance = {
        "model": _words(_found(outcomes, "key", "model", "id")),
        "revision": _words(str(each)[:_SHORT] for each in _found(outcomes, "key", "model", "revision")),
        "weights": _words(_found(outcomes, "key", "model", "dtype")),
        "attention": _words(f"{kernel} ({part})" for part, kernel in attention.items() if kernel),
        "device": _words(devices),
        "software": _words(f"{name} {version}" for name, version in software.items() if version),
        "started": " to ".join(dict.fromkeys((*started[:1], *started[-1:]))),
    }
    return {name: text for name, text in provenance.items() if text}


def task_facts(outcomes: Sequence[Outcome]) -> list[str]:
    """What was asked in one task and how; what no outcome knows is left out."""
    samples = outcomes[0].samples
    units, unit = len({sample.cluster for sample in samples}), outcomes[0].unit
    protocols = _found(outcomes, "key", "protocol")
    scored = _words(each.get("parser") or each.get("scorer") for each in protocols)
    facts = (
        f"{len(samples):,} samples about {units:,} {unit}{'' if units == 1 else 's'}",
        _words(map(_decoding, protocols)),
        f"scored by {scored}" if scored else "",
    )
    return [fact for fact in facts if fact]


def task_sources(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What one task was made from, by name; what no outcome knows is left out."""
    sources = {
        "first prompt": _words(_found(outcomes[:1], "info", "first_prompt")),
        "data": "\n".join(
            f"{role}: {_data(used)}"
            for roles in _found(outcomes, "info", "data")
            for role, used in roles.items()
        ),
    }
    return {name: text for name, text in sources.items() if text}


def unlike(value: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What is not the same in another mapping, at any depth."""
    found: dict[str, Any] = {}
    for name, each in value.items():
        theirs = other.get(name)
        if each != theirs:
            nested = isinstance(each, Mapping) and isinstance(theirs, Mapping)
            found[name] = unlike(each, theirs or {}) if nested else each
    return found


def _found(outcomes: Sequence[Outcome], *path: str) -> list[Any]:
    """The different values at this place of the details."""
    values: list[Any] = []
    for outcome in outcomes:
        value: Any = outcome.details
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value not in values:
            values.append(value)
    return values


def _words(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def _decoding(protocol: Mapping[str, Any]) -> str:
    temperature, beams = protocol.get("temperature"), protocol.get("num_beams")
    if temperature:
        seeds = protocol.get("seeds", ())
        way = f"temperature {temperature:g}, top-p {protocol.get('top_p'):g}, {len(seeds)} repeats"
    else:
        way = f"{beams} beams" if beams and beams > 1 else "greedy"
    return f"{way}, at most {protocol.get('max_new_tokens')} new tokens"


def _data(used: Mapping[str, Any]) -> str:
    shown = {name: str(value) for name, value in used.items() if name != "file"}
    return ", ".join(f"{name} {text[:12] if name == 'sha256' else text}" for name, text in shown.items())
