"""Answers, pictures and methods for people."""

from __future__ import annotations

import dataclasses
from difflib import SequenceMatcher
from typing import get_args

import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.color import Color
from rich.markup import escape
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.methods.base import Method, Provenance, Stage
from vlmfix.methods.registry import list_methods, make_method
from vlmfix.methods.suitability import suitability

_BUILT_FROM: dict[Provenance, str] = {
    "paper": "paper",
    "released code": "code",
    "reconstruction": "~paper",
    "unpublished": "",
}


def mark_differences(first: str, second: str, *, style: str = "bold reverse") -> tuple[Text, Text]:
    """Both texts, with the words marked that the other one lacks at this place."""
    words = first.split(), second.split()
    texts = Text(), Text()
    for operation, *bounds in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for text, own, (start, end) in zip(texts, words, (bounds[:2], bounds[2:]), strict=True):
            for word in own[start:end]:
                text.append(word, style="" if operation == "equal" else style)
                text.append(" ")
    return texts


def thumbnail(image: Image.Image, columns: int = 48) -> Text:
    """The picture in half blocks, two pixels a character cell."""
    scale = min(1, columns / image.width, 2 * columns / image.height)
    width = max(1, round(image.width * scale))
    rows = max(1, round(image.height * scale / 2))
    small = image.resize((width, 2 * rows), Image.Resampling.LANCZOS)
    pixels = np.asarray(small)
    text = Text(no_wrap=True)
    for y in range(0, small.height, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*pixels[y + below, x].tolist()) for below in (0, 1))
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def methods_by_stage() -> list[Table]:
    """The methods of each stage that has some, a line each, in the order in which stages act."""
    tables = []
    known = list_methods()
    for stage in get_args(Stage):
        table = Table(
            Column(stage, no_wrap=True),
            Column("changes", ratio=1),
            Column("cost", justify="right"),
            Column("built from", no_wrap=True),
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for name, cls in known.items():
            if cls.info.stage == stage:
                info = cls.info
                source = f"{_BUILT_FROM[info.provenance]} {info.paper if info.is_on_arxiv else ''}"
                table.add_row(name, info.changes, f"{info.forwards:g}", source)
        if table.rows:
            tables.append(table)
    return tables


def describe_method(cls: type[Method]) -> Table:
    """All that a method says of itself."""
    info = cls.info
    of_class = {field.name: field.default for field in dataclasses.fields(cls)}
    table = Table(Column(cls.name, no_wrap=True), Column(f"{info.stage}: {info.changes}", ratio=1))
    paper = f"arXiv {info.paper}" if info.is_on_arxiv else info.paper
    for key, value in (
        ("where", info.where),
        ("works with", f"{info.decoding}; {info.kernels}"),
        ("families", info.families),
        ("cost", f"forward passes per generated token: {info.forwards:g}"),
        ("built from", f"{info.provenance}; {paper}" if paper else info.provenance),
        ("defaults", "\n".join(f"{name} = {of_class[name]!r}" for name in cls.parameter_names())),
    ):
        table.add_row(key, escape(value))
    return table


def suitability_table(model: PreTrainedModel, processor: ProcessorMixin, name: str) -> Table:
    """Which methods work on a model, with which values and from which profile, or why not."""
    table = Table("method", "works", Column("values, and where they come from", ratio=1), title=escape(name))
    for method_name in list_methods():
        method = make_method(method_name)
        found = suitability(method, model, processor)
        defaults = method.parameters
        lines = [
            f"{key} = {value}"
            for key, value in found.parameters.items()
            if value != defaults[key]  # what its class says is in 'vlmfix methods'
        ]
        lines += [
            f"{key} of profile {entry['profile']}, by {entry['matched_by']}: {entry['value']} "
            f"({entry['source']})"
            for key, entry in found.profile.items()
        ]
        lines += found.notes
        table.add_row(method_name, "yes" if found.works else "no", escape("\n".join(lines)))
    return table


def methods_markdown() -> str:
    """The table of the README, stage by stage."""
    head = ("name", "stage", "changes", "cost", "paper")
    lines = [head, ["---"] * len(head)]
    order = get_args(Stage)
    for name, cls in sorted(list_methods().items(), key=lambda item: order.index(item[1].info.stage)):
        info = cls.info
        arxiv = f"[{info.paper}](https://arxiv.org/abs/{info.paper})"
        code = f"[code](https://{info.paper})" if info.paper else ""
        paper = arxiv if info.is_on_arxiv else code
        lines.append([f"`{name}`", info.stage, info.changes, f"{info.forwards:g}", paper])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
