"""How tests read reports, tables and the progress of runs."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

from rich.console import Console

from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.report.console_tables import tables

VOID = {"meta", "link", "img", "input", "br", "wbr", "path", "rect", "circle", "line"}


class Page(HTMLParser):
    """The elements of a page, checked for balance."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID and tag not in ("option",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and tag not in ("option",):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def tags(self) -> Counter[str]:
        return Counter(tag for tag, _ in self.elements)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


class Notes:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.active: list[tuple[str, str, int, int]] = []
        self.statuses: list[str] = []
        self.scores: list[float] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, title: str, running: str, total: int, done: int) -> Notes:
        self.active.append((title, running, total, done))
        return self

    def advance(self, records: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> None:
        self.statuses += [record["status"] for record in records]
        self.scores += scores

    def end(self) -> None:
        self.active.append(("end", "", 0, 0))


def printed(*several: Outcome, width: int = 100, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system="standard" if terminal else None
    )
    console.print(tables(compare(several), width=width))
    return file.getvalue()
