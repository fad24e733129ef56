"""What a profile file may hold; whatever else it holds is named with its field."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmfix.models.match import fault_of_match, given, unknown_key
from vlmfix.settings import parse_yaml

Content = dict[str, Any]


def read_profile_file(path: Path) -> Content:
    """Name, match and values of a profile file, checked.

    Raises:
        ValueError: it is no YAML, or a field is missing or not what it must be; names file and field.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a profile: {' '.join(str(error).split())}") from error
    fault = _fault(content)
    if fault is not None:
        raise ValueError(f"{path} is not a profile: {fault}")
    return dict(content)


def _fault(content: Any) -> str | None:
    """What is wrong with the content of a file; None: nothing."""
    if not isinstance(content, Mapping):
        return "it must be a mapping with name, match and values"
    for name, wanted in (("name", str), ("match", Mapping), ("values", Mapping)):
        if not isinstance(content.get(name), wanted) or content[name] == "":
            kind = "a text" if wanted is str else "a mapping"
            return f"{name} is {given(content, name)}; it must be {kind}"
    return unknown_key("", content, ("name", "match", "values")) or next(
        filter(None, (fault_of_match(content["match"]), *map(_fault_of_value, content["values"].items()))),
        None,
    )


def _fault_of_value(item: tuple[Any, Any]) -> str | None:
    name, entry = item
    field = f"values.{name}"
    if not isinstance(name, str):
        return f"{field} has a name that is no text"
    if not isinstance(entry, Mapping):
        return f"{field} is {entry!r}; it must be a mapping with value and source"
    if entry.get("value") is None:
        return f"{field}.value is missing"
    if not isinstance(entry.get("source"), str) or not entry["source"]:
        return f"{field}.source is {given(entry, 'source')}; it must be a text that says where it comes from"
    if not isinstance(entry.get("verified", True), bool):
        return f"{field}.verified is {entry['verified']!r}; it must be true or false"
    if name not in _RULES:  # methods of other packages have parameters of their own
        near = difflib.get_close_matches(name, _RULES, n=1, cutoff=0.85)
        if near:
            return f"{field} is no parameter of any method; did you mean {near[0]}?"
    elif not _RULES[name][0](entry["value"]):
        return f"{field}.value is {entry['value']!r}; it must be {_RULES[name][1]}"
    return unknown_key(f"{field}.", entry, ("value", "source", "verified"))


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _are_indices(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_index, value))


def _are_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(_are_indices(pair) and len(pair) == 2 for pair in value)


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, list)
        and value != []
        and all(isinstance(row, list) and row != [] and all(map(_is_number, row)) for row in value)
        and len({len(row) for row in value}) == 1
    )


def _are_schedules(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(each, Mapping)
        and len(each) == 2
        and _are_indices(each.get("prune_layers"))
        and (
            _are_indices(each.get("kept_tokens"))
            or (isinstance(each.get("kept_ratios"), list) and all(map(_is_number, each["kept_ratios"])))
        )
        for name, each in value.items()
    )


_INDEX = (_is_index, "a whole number of 0 or more")
_NUMBER = (_is_number, "a number of 0 or more")
_TABLE = (_is_table, "a list of numbers of 0 or more, one for each head, for each layer")
_INDICES = (_are_indices, "a list of whole numbers of 0 or more")
_FILE = (
    lambda value: isinstance(value, str) and "/" not in value and value.endswith(".safetensors"),
    "the name of a safetensors file beside the profile",
)
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "act_heads": (_are_pairs, "a list of pairs [layer, head]"),
    "adaiat_hallucinated": _TABLE,
    "adaiat_real": _TABLE,
    "adaptinfer_schedules": (
        _are_schedules,
        "a mapping of names in quotes to prune_layers with kept_tokens or kept_ratios",
    ),
    "adhh_heads": (_are_pairs, "a list of pairs [layer, head]"),
    "carve_contrast_layers": (lambda value: _are_indices(value) and value != [], _INDICES[1] + ", not empty"),
    "dyvte_exit_layer": _INDEX,
    "final_norm": (lambda value: isinstance(value, str), "the name of a module"),
    "gift_enhanced_layers": (lambda value: _are_pairs([value]), "the first and the last layer, [12, 22]"),
    "gift_image_boost": _NUMBER,
    "gift_saliency_layer": _INDEX,
    "head_pursuit_heads": (
        lambda value: isinstance(value, Mapping) and value != {} and all(map(_are_pairs, value.values())),
        "a mapping of concepts to lists of pairs [layer, head]",
    ),
    "nullu_directions": _FILE,
    "paint_local_boost": _NUMBER,
    "paint_summary_boost": _NUMBER,
    "register_neurons": (lambda value: _are_pairs(value) and value != [], "a list of pairs [layer, neuron]"),
    "rudder_alpha_max": _NUMBER,
    "sink_dimensions": (lambda value: _are_indices(value) and value != [], _INDICES[1] + ", not empty"),
    "sink_threshold": _NUMBER,
    "unknown_token_id": _INDEX,
    "vhr_extra_layers": _INDICES,
    "vhr_num_last_layers": _INDEX,
    "vti_directions": _FILE,
}
