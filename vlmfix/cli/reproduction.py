"""Published tables as jobs, and what came of them beside what was published."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as Shown
from rich.text import Text

from vlmfix.cli.console import out
from vlmfix.cli.jobs import run_job
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.atomic import write_json
from vlmfix.evaluation.report.formatting import number
from vlmfix.evaluation.report.json_summary import rounded
from vlmfix.evaluation.reproduction import Line, Table, compared, report_lines
from vlmfix.evaluation.runner.config import SYNTHETIC
from vlmfix.settings import user_path

FILE = "reproduction.json"
_PLACES = {"in": "in the interval", "below": "below it", "above": "above it", "": "-"}


def run_table(table: Table, model: str | None, options: Mapping[str, Any]) -> None:
    """Repeat a table as a job, and show and write what was published beside what was measured.

    Args:
        table: to repeat.
        model: in the place of the published one.
        options: further settings of the job, as a job file has them.
    """
    data = options["data"]
    is_synthetic = data == SYNTHETIC or (user_path(data).is_dir() and DataFolder.find(data).is_synthetic)
    comparisons = run_job({**table.settings(model=model, is_synthetic=is_synthetic), **options})
    if not comparisons:
        return  # the process that ends last has them
    [comparison] = comparisons
    if model not in (None, table.model) and table.is_of(model):
        taken = f"The model is {model}, which is taken for {table.model} by its name."
        table = dataclasses.replace(table, deviations=(*table.deviations, taken))
    lines = compared(table, comparison)
    differences = table.differences(comparison, model=model, limit=options["limit"])
    path = user_path(options["output"]) / FILE
    write_json(path, _content(table, lines, differences))
    out.print(_shown(table, lines, is_comparable=not differences))
    for line in (*report_lines(table, differences), str(path)):
        out.print(line, soft_wrap=True, highlight=False, markup=False)


def _content(table: Table, lines: Sequence[Line], differences: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = rounded(
        {
            "table": table.name,
            "source": table.source,
            "published": dict(table.published),
            "deviations": list(table.deviations),
            "comparable": not differences,
            "differences": list(differences),
            "figures": [
                dataclasses.asdict(line) | {"published_is": None if differences else line.place or None}
                for line in lines
            ],
        }
    )
    return content


def _shown(table: Table, lines: Sequence[Line], *, is_comparable: bool) -> Shown:
    title = f"{table.name}: published beside measured" + ("" if is_comparable else " (not comparable)")
    shown = Shown(box=SIMPLE_HEAD, title=Text(title), title_justify="left")
    for head in ("method", "figure"):
        shown.add_column(head, overflow="fold")
    for head in ("published", "measured, 95 % interval", "published is"):
        shown.add_column(head, justify="right")
    for line in lines:
        figure = " ".join(filter(None, (line.published.metric, line.published.group)))
        place = _PLACES[line.place] if is_comparable else "-"
        shown.add_row(Text(line.method), Text(figure), str(line.published), Text(_measured(line)), place)
    return shown


def _measured(line: Line) -> str:
    if line.measured is None:
        return "-"
    value, *ends = (None if each is None else number(each) for each in (line.measured, line.low, line.high))
    return f"{value} [{', '.join(end for end in ends if end is not None) or '-'}]"
