"""Trackers of experiments (W&B, MLflow, TensorBoard, Trackio), which receive a finished report."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmfix.evaluation.analysis.comparison import Comparison
from vlmfix.evaluation.files.atomic import write_json
from vlmfix.evaluation.files.hashing import plain
from vlmfix.evaluation.files.readers import read_json, sha256_of
from vlmfix.evaluation.report.collect import METRICS, REPORT
from vlmfix.evaluation.report.json_summary import rounded
from vlmfix.evaluation.runner.config import Job
from vlmfix.failures import words

TRACKERS = ("wandb", "mlflow", "tensorboard", "trackio")
FOLDER, LOGGED = "trackers", "logged.json"
PROJECT = "vlmfix"
# By which launchers tell a process that there are others; of these, one writes the report.
_LAUNCHERS = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_(RANK|WORLD_SIZE)|(PMI|MPI|OMPI_COMM_WORLD|MV2_COMM_WORLD|ACCELERATE)_.*"
)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be had, before any work.

    Args:
        names: of trackers.

    Raises:
        ValueError: an unknown one, or one whose package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--tracker is {name!r}; it must be one of {', '.join(TRACKERS)}")
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    available = [str(each) for each in get_available_trackers()]
    for name in names:
        if name not in available:
            raise ValueError(
                f"--tracker {name} needs the package {name}, which is not installed; pip install {name}, or "
                "leave the tracker out"
            )


def log_report(
    names: Sequence[str], job: Job, comparisons: Sequence[Comparison], note: Callable[[str], None]
) -> None:
    """Give the figures, the settings and the page of a finished job to trackers; one that fails is told.

    What a tracker has already is not given to it again.

    Args:
        names: of trackers.
        job: whose report is written.
        comparisons: what the report compares.
        note: is told what did not work.
    """
    logged = job.output / FOLDER / LOGGED
    figures = sha256_of(job.output / METRICS) if names else ""
    for name in dict.fromkeys(names):
        try:
            known = read_json(logged) if logged.is_file() else {}
            if known.get(name) == figures:
                note(f"{name} has these figures already; delete {logged} to log them again")
                continue
            logged.parent.mkdir(exist_ok=True)
            with _alone():
                _log(name, job, comparisons)
            write_json(logged, {**known, name: figures})
        except Exception as error:  # packages that talk to servers raise what they like
            note(f"{name} did not take the report ({words(error)}); all results are in {job.output}")


def _log(name: str, job: Job, comparisons: Sequence[Comparison]) -> None:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=True)  # which the trackers ask whether they are the first of several processes
    page = job.output / REPORT
    tracker = LOGGER_TYPE_TO_CLASS[name](**_arguments(name, job.output))
    tracker.start()
    try:
        tracker.store_init_configuration(_settings(job, comparisons) | {"report": str(page.resolve())})
        tracker.log(_figures(comparisons))
        if name == "mlflow":
            tracker.log_artifact(str(page))
        elif name == "wandb":
            import wandb

            tracker.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
    finally:
        tracker.finish()


def _arguments(name: str, output: Path) -> dict[str, Any]:
    """What makes a tracker: one project, and in it a run that is called as the output folder."""
    run, folder = output.resolve().name, str(output / FOLDER)
    return {
        "wandb": {"run_name": os.environ.get("WANDB_PROJECT", PROJECT), "name": run, "dir": folder},
        "mlflow": {"experiment_name": PROJECT, "run_name": run},
        "tensorboard": {"run_name": run, "logging_dir": folder},
        "trackio": {"run_name": PROJECT, "name": run},
    }[name]


def _settings(job: Job, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The settings of a job, and what its model and versions are, as a flat mapping."""
    details = comparisons[0].rows[0].outcome.details
    found = {
        "job": plain(job.settings),
        "model": details["key"]["model"],
        "environment": details["environments"][-1],
        "protocol": {each.task: each.protocol for each in comparisons},
    }
    return dict(_flat("", found))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _flat(f"{path}.{_word(str(name))}" if path else str(name), each)
    elif value is not None:
        yield path, value if isinstance(value, bool | int | float | str) else str(value)


def _figures(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Every defined figure as task/method/group/metric, and the ends of its interval."""
    found: dict[str, float] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            for figure in row.figures:
                if not figure.is_defined:
                    continue
                parts = (comparison.task, row.outcome.method, figure.metric.group, figure.metric.name)
                name = _unused("/".join(_word(part) for part in parts if part), found)
                estimate = figure.estimate
                for end, value in (("", estimate.value), ("/low", estimate.low), ("/high", estimate.high)):
                    if value is not None:
                        found[name + end] = rounded(value)
    return found


def _word(text: str) -> str:
    """A text of the characters that all trackers allow in names."""
    return re.sub(r"[^\w\-. ]+", "_", text).strip("_")


def _unused(name: str, found: Mapping[str, float]) -> str:
    """A name that is not taken: characters that were replaced may have told two apart."""
    numbers = (f"{name}_{number}" for number in range(2, len(found) + 3))
    return name if name not in found else next(each for each in numbers if each not in found)


@contextmanager
def _alone() -> Iterator[None]:
    """An environment without launcher: accelerate would wait for processes that have ended."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _LAUNCHERS.fullmatch(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)
