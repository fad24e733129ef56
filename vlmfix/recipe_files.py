"""What a recipe file may hold; whatever else it holds is named with its field."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from vlmfix.methods.validation import check_whole, shown
from vlmfix.models.match import fault_of_match, given, unknown_key

FIELDS = ("name", "match", "methods", "decoding", "task", "data", "evidence", "versions")
DECODING = ("num_beams",)
"""Arguments of `model.generate` that a recipe may have."""


def fields_of(content: Any) -> dict[str, Any]:
    """The fields of a recipe from the content of a file.

    Raises:
        ValueError: it has others, lacks some, or its methods have another form.
    """
    if not isinstance(content, Mapping):
        raise ValueError("it must be a mapping with name, match and methods")
    if unknown := unknown_key("", content, FIELDS):
        raise ValueError(unknown)
    for name in FIELDS[:3]:
        if content.get(name) is None:
            raise ValueError(f"{name} is {given(content, name)}; every recipe has one")
    if not isinstance(content["methods"], list):
        raise ValueError(
            f"methods is {shown(content['methods'])}; it must be a list with a line for each, such as - pai: "
            "{alpha: 0.2}"
        )
    methods = []
    for index, entry in enumerate(content["methods"]):
        pairs = list(entry.items()) if isinstance(entry, Mapping) else []
        if len(pairs) != 1 or not isinstance(pairs[0][0], str) or not isinstance(pairs[0][1], Mapping):
            raise ValueError(
                f"methods[{index}] is {shown(entry)}; it must be one name with a mapping of parameters, such "
                "as pai: {alpha: 0.2}"
            )
        methods += pairs
    return {**content, "methods": tuple(methods)}


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse a field that is not what it must be; what methods take is another question.

    Raises:
        ValueError: naming the field and the value.
    """
    for name in ("name", "task"):
        if not isinstance(fields[name], str) or not (fields[name] + " ").isprintable():
            raise ValueError(f"{name} is {shown(fields[name])}; it must be a text of one line")
    if not fields["name"].strip():
        raise ValueError(f"name is {fields['name']!r}; it must not be empty")
    if fault := fault_of_match(fields["match"]):
        raise ValueError(fault)
    if "weights" not in fields["match"]:
        raise ValueError(
            "match.weights is missing; it must be the digest that 'vlmfix methods --model MODEL' prints"
        )
    for name in ("decoding", "data", "versions"):
        if not isinstance(fields[name], Mapping):
            raise ValueError(f"{name} is {shown(fields[name])}; it must be a mapping")
    evidence = fields["evidence"]
    if not isinstance(evidence, list | tuple) or not all(isinstance(row, Mapping) for row in evidence):
        raise ValueError(f"evidence is {shown(evidence)}; it must be a list of mappings")
    names = [name for name, _ in fields["methods"]]
    if len(set(names)) < len(names):
        raise ValueError(f"methods has {', '.join(names)}; each may come once")
    if unknown := unknown_key("decoding.", fields["decoding"], DECODING):
        raise ValueError(unknown)
    if "num_beams" in fields["decoding"]:
        check_whole("decoding.num_beams", fields["decoding"]["num_beams"], 2)


def plain(where: str, value: Any) -> Any:
    """A value as a file holds it: tuples as lists, texts and numbers of other libraries as Python's.

    Raises:
        ValueError: no file can hold it; `where` names it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and abs(float(value)) < float("inf"):
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(f"{where}[{index}]", each) for index, each in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: plain(f"{where}.{name}", each) for name, each in value.items()}
    raise ValueError(
        f"{where} is {shown(value)}; it must be a text, a finite number, true or false, or a list or a "
        "mapping of them"
    )
