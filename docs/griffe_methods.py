"""What the reference shows of a method beyond its docstring: the facts that `vlmfix methods` prints."""

from __future__ import annotations

import ast
from typing import Any

import griffe


class Methods(griffe.Extension):
    """Shows the `info` of a method, and knows `name: ClassVar = value` as no argument of its class."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        annotation = attr.annotation
        if isinstance(annotation, griffe.ExprName) and annotation.canonical_name == "ClassVar":
            attr.labels.discard("instance-attribute")
        value = getattr(node, "value", None)
        if attr.name == "info" and isinstance(value, ast.Call):
            facts = (f"- {each.arg}: {ast.literal_eval(each.value)}" for each in value.keywords)
            attr.docstring = griffe.Docstring("\n".join(facts), parent=attr)
