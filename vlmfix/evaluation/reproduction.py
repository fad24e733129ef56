"""Published tables that can be repeated: what was published, how it is run here, and what is known to differ.

Figures are published ones as their source has them, in percent where they are shares; nothing here is a
promise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmfix.settings import closest, configs_directory, read_yaml

if TYPE_CHECKING:
    from vlmfix.evaluation.analysis.comparison import Comparison
    from vlmfix.evaluation.analysis.estimates import Figure as Measured

CONDITIONS = ("data", "prompt", "max_new_tokens", "decoding", "scorer", "seed", "dtype")
"""What has to be known to repeat a table; null where it is not published."""
_ROW = ("method", "of_model", "figures")


@dataclass(frozen=True)
class Published:
    """A published figure.

    Args:
        metric: as the library calls it.
        group: split; "" for the whole.
        low: its value, or the lowest of several sources.
        high: its value, or the highest.
    """

    metric: str
    group: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Row:
    """One method of a table.

    Args:
        method: in the form of a job file.
        of_model: parameters by method that make sense on the published model alone, such as layers.
        figures: that were published.
    """

    method: Any
    of_model: Mapping[str, Mapping[str, Any]]
    figures: tuple[Published, ...]

    def entry(self, *, is_published_model: bool) -> Any:
        """The method in the form of a job file."""
        if not self.of_model or not is_published_model:
            return self.method
        [name] = self.of_model
        given = self.method[name] if isinstance(self.method, Mapping) else {}
        return {name: {**given, **self.of_model[name]}}


@dataclass(frozen=True)
class Table:
    """A published table.

    Args:
        name: method and benchmark, such as "vhr/chair".
        source: where its figures are from.
        model: hub id of the model.
        task: benchmark.
        protocol: the nearest one.
        published: each of `CONDITIONS` as it was published; None: it was not.
        rows: the first is what the others are compared with.
        deviations: what is known to differ here, in sentences.
    """

    name: str
    source: str
    model: str
    task: str
    protocol: str
    published: Mapping[str, Any]
    rows: tuple[Row, ...]
    deviations: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, name: str) -> Table:
        """Read the file of a table.

        Raises:
            ValueError: a field is missing, unknown, or not what it must be.
            OSError: it cannot be read.
        """
        content = read_yaml(path)
        fields = [field.name for field in dataclasses.fields(cls) if field.name != "name"]
        if not isinstance(content, dict) or set(content) != set(fields):
            raise ValueError(f"{path} is no table; it must be a mapping with {', '.join(fields)}")
        texts = {field: content[field] for field in ("source", "model", "task", "protocol")}
        wrong = [field for field, value in texts.items() if not isinstance(value, str) or not value]
        if wrong:
            raise ValueError(f"{path}: {wrong[0]} is {texts[wrong[0]]!r}; it must be a text")
        published, deviations = content["published"], content["deviations"]
        if not isinstance(published, dict) or tuple(published) != CONDITIONS:
            raise ValueError(f"{path}: published must be a mapping with {', '.join(CONDITIONS)}")
        if not isinstance(deviations, list) or not all(isinstance(each, str) for each in deviations):
            raise ValueError(f"{path}: deviations must be a list of sentences")
        if not isinstance(content["rows"], list) or not content["rows"]:
            raise ValueError(f"{path}: rows must be a list with method and figures for each")
        rows = tuple(_row(f"{path}: rows[{index}]", each) for index, each in enumerate(content["rows"]))
        return cls(name, **texts, published=published, rows=rows, deviations=tuple(deviations))

    @property
    def methods(self) -> list[str]:
        """The names of the methods, without parameters."""
        return [row.method if isinstance(row.method, str) else next(iter(row.method)) for row in self.rows]

    def is_of(self, model: str | None) -> bool:
        """Whether a model is the published one, by its hub id, or by the name of its folder."""
        return model is None or Path(model).name == self.model.rpartition("/")[2]

    def settings(self, *, model: str | None, is_synthetic: bool) -> dict[str, Any]:
        """What a job file would have.

        Args:
            model: in the place of the published one.
            is_synthetic: whether the data are synthetic scenes, which the task has a protocol of its own for.
        """
        entries = [row.entry(is_published_model=self.is_of(model)) for row in self.rows]
        found = {
            "tasks": [self.task],
            "model": model or self.model,
            "methods": entries,
            "baselines": False,
        }
        return found if is_synthetic else found | {"protocol": self.protocol}

    def differences(
        self, comparison: Comparison, *, model: str | None, limit: int | float | str | None
    ) -> list[str]:
        """Why a run is not comparable with the table, in sentences; none: it is, but for its deviations.

        Args:
            comparison: what was measured.
            model: that was asked for in the place of the published one.
            limit: on the samples.
        """
        found = []
        if not self.is_of(model):
            found.append(f"The model is {model}, and the table is of {self.model}.")
        _, _, data_set = comparison.protocol.partition("+")[0].partition("/")
        if data_set == "synthetic":
            found.append(f"The data are synthetic scenes, under the protocol {comparison.protocol}.")
        elif data_set != "coco":
            found.append("The data are not the published ones, by the names of their files.")
        if limit is not None:
            found.append(f"The samples are limited to {limit}, and the table is of all.")
        failed = sum(
            row.outcome.counts["samples"] - row.outcome.counts["answered"] for row in comparison.rows
        )
        if failed:
            found.append(f"{failed:,} samples have no answer.")
        return found


@dataclass(frozen=True)
class Line:
    """A published figure beside the measured one.

    Args:
        method: label of the row.
        published: the figure.
        measured: in the same unit; None: there is no such figure, or it is undefined.
        low: end of its 95 % interval; None: unknown.
        high: the other end.
        percent: whether it is a share.
    """

    method: str
    published: Published
    measured: float | None
    low: float | None
    high: float | None
    percent: bool

    @property
    def place(self) -> str:
        """Where the published figure lies: "in", "below" or "above" the interval; "" without one."""
        if self.low is None or self.high is None:
            return ""
        if self.published.high < self.low:
            return "below"
        return "above" if self.published.low > self.high else "in"


def compared(table: Table, comparison: Comparison) -> list[Line]:
    """Every published figure of a table beside the measured one.

    Args:
        table: that was repeated.
        comparison: of its job, whose rows are those of the table, in order.
    """
    lines = []
    for row, measured in zip(table.rows, comparison.rows, strict=True):
        figures = {(each.metric.name, each.metric.group): each for each in measured.figures}
        for published in row.figures:
            figure = figures.get((published.metric, published.group))
            lines.append(_line(measured.outcome.method, published, figure))
    return lines


def tables() -> list[str]:
    """The names of all tables, in alphabetical order."""
    folder = _directory()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml"))


def load_table(name: str) -> Table:
    """A table by name.

    Raises:
        ValueError: there is none, or its file is broken.
    """
    known = tables()
    if name not in known:
        raise ValueError(
            f"no published table {name!r}{closest(name, known)}; 'vlmfix reproduce' lists what there is"
        )
    return Table.read(_directory() / f"{name}.yaml", name)


def _directory() -> Path:
    return configs_directory() / "reproductions"


def _row(where: str, content: Any) -> Row:
    if not isinstance(content, dict) or not {"method", "figures"} <= set(content) <= set(_ROW):
        raise ValueError(f"{where} must be a mapping with method, figures and maybe of_model")
    method, of_model = content["method"], content.get("of_model", {})
    if not isinstance(method, str) and not (isinstance(method, dict) and len(method) == 1):
        raise ValueError(f"{where}: method is {method!r}; it must be a name, or one name with parameters")
    name = method if isinstance(method, str) else next(iter(method))
    if not isinstance(of_model, dict) or not set(of_model) <= {name}:
        raise ValueError(f"{where}: of_model is {of_model!r}; it must hold parameters of {name}")
    figures = content["figures"]
    if not isinstance(figures, dict) or not figures:
        raise ValueError(f"{where}: figures must be a mapping from metrics to values")
    found = []
    for metric, values in figures.items():
        groups = values if isinstance(values, dict) else {"": values}
        for group, value in groups.items():
            ends = value if isinstance(value, list) and len(value) == 2 else [value, value]
            if not all(type(end) in (int, float) for end in ends) or ends[0] > ends[1]:
                raise ValueError(f"{where}: {metric} is {value!r}; it must be a number, or [lowest, highest]")
            found.append(Published(metric, group, *map(float, ends)))
    return Row(method, of_model, tuple(found))


def _line(method: str, published: Published, figure: Measured | None) -> Line:
    if figure is None or not figure.is_defined:
        return Line(method, published, None, None, None, percent=False)
    percent, estimate = figure.metric.percent, figure.estimate
    value, low, high = (
        None if each is None else each * (100 if percent else 1)
        for each in (estimate.value, estimate.low, estimate.high)
    )
    return Line(method, published, value, low, high, percent)


def report_lines(table: Table, differences: Sequence[str]) -> list[str]:
    """What stands under a repeated table: source, conditions, and everything that differs."""
    unknown = [name for name, value in table.published.items() if value is None]
    known = "; ".join(f"{name}: {value}" for name, value in table.published.items() if value is not None)
    lines = [f"source: {table.source}", f"published: {known}"]
    if unknown:
        lines.append(f"not published: {', '.join(unknown)}")
    lines += [f"deviation: {each}" for each in table.deviations]
    return lines + [f"not comparable: {each}" for each in differences]
