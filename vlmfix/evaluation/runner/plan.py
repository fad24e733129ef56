"""Plan of a job: its samples, its runs, and the file that lists them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.datasets.sources import open_data
from vlmfix.evaluation.files.atomic import check_writable, write_json
from vlmfix.evaluation.files.hashing import differences, plain
from vlmfix.evaluation.files.readers import examples, shown
from vlmfix.evaluation.runner import baselines, run_key
from vlmfix.evaluation.runner.config import Job, make_job
from vlmfix.evaluation.runner.run_store import ResumeError, read_manifest
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.subset import subset
from vlmfix.evaluation.tasks.base import Task
from vlmfix.evaluation.tasks.protocol_files import default_protocol
from vlmfix.evaluation.tasks.registry import get_task
from vlmfix.failures import words

JOB = "job.json"
# Missing pictures that a message names.
_NAMED_PICTURES = 10


@dataclass(frozen=True)
class TaskPlan:
    """A task of a job.

    Args:
        task: with data and protocol.
        samples: in order of ids.
        used: the data files that they are made of.
        subset: which part of the images they are about, in words; "" for all.
        note: what a reader has to know of this choice; "" if nothing.
    """

    task: Task
    samples: list[Sample]
    used: dict[str, dict[str, Any]]
    subset: str = ""
    note: str = ""


@dataclass(frozen=True)
class RunPlan:
    """One run of a job.

    Args:
        task: with data and protocol.
        samples: of the job, in order of ids.
        variant: the methods.
        path: of its directory.
        subset: which part of the images the samples are about, in words; "" for all.
    """

    task: Task
    samples: list[Sample]
    variant: Variant
    path: Path
    subset: str = ""

    @property
    def identities(self) -> Iterator[tuple[Sample, int]]:
        """Every sample with every repeat, in order."""
        for sample in self.samples:
            for repeat in range(len(self.task.protocol.seeds)):
                yield sample, repeat


def prepare(
    job: Job,
    progress: Callable[[int], None] | None = None,
    left_out: Callable[[str], None] | None = None,
) -> list[TaskPlan]:
    """The tasks of a job with their samples; needs no model. Warns of pictures that are missing.

    Args:
        job: what to do.
        progress: called with the number of synthetic scenes just drawn.
        left_out: told why of several tasks one cannot run, whose data are missing; None: none may be.

    Raises:
        FileNotFoundError: a file is missing, or all pictures of a task.
        ValueError: a file is broken, or there is no sample.
        OSError: the output cannot be written.
    """
    check_writable(job.output)
    data = open_data(job.data, job.output / "data", progress)
    tasks: list[TaskPlan] = []
    for name in job.tasks:
        try:
            plan = _task_plan(job, name, data)
            _check_pictures(name, plan.samples)
        except FileNotFoundError as error:
            if left_out is None or (not tasks and name == job.tasks[-1]):
                raise
            left_out(f"{name} is left out: {words(error)}")
        else:
            tasks.append(plan)
    return tasks


def _task_plan(job: Job, name: str, data: DataFolder | HubData) -> TaskPlan:
    """A task with its samples."""
    protocol = job.protocols.get(name)
    wanted = "" if protocol is None else protocol.data_set
    data_set = "custom" if isinstance(data, HubData) else data.data_set(name, wanted)
    if isinstance(data, HubData) and wanted not in ("", data_set):
        raise ValueError(
            f"the protocol is for {wanted}, and the data set {data.name} is {data_set}; name the "
            "protocol without data set"
        )
    protocol = (protocol or default_protocol(name, data_set, job.tasks_from)).on(data_set)
    data.used = {}
    task = get_task(name, job.tasks_from)(data, protocol, job.seed)
    samples = task.samples(job.output / "data" / task.name)
    _check_samples(task, samples)
    if not samples:
        raise ValueError(f"{name} has no samples in the data; check --data")
    part = subset(samples, job.limit, images=job.limit_images, unit=task.unit)
    return TaskPlan(task, part.samples, dict(data.used), part.words, part.note)


def _check_pictures(task: str, samples: Sequence[Sample]) -> None:
    """Warn of missing pictures before a model is loaded.

    Raises:
        FileNotFoundError: all are missing.
    """
    pictures = list(dict.fromkeys(sample.image for sample in samples if sample.image is not None))
    missing = [picture for picture in pictures if not picture.is_file()]
    if not missing:
        return
    names = examples((picture.name for picture in missing), _NAMED_PICTURES)
    if len(missing) == len(pictures):
        raise FileNotFoundError(
            f"none of the {len(pictures)} pictures of {task} is in {missing[0].parent} ({names}); give "
            "data: {images: FOLDER}"
        )
    warnings.warn(
        f"{len(missing)} of {len(pictures)} pictures of {task} are missing ({names}); their samples will be "
        "recorded as failed",
        stacklevel=3,
    )


def _check_samples(task: Task, samples: object) -> None:
    """Refuse what a benchmark of somebody else may give.

    Raises:
        ValueError: it is no list of samples, or the target of a yes/no question is neither.
    """
    if not isinstance(samples, list) or not all(isinstance(each, Sample) for each in samples):
        raise ValueError(f"{type(task).__name__}.samples gives no list of Sample but {shown(samples)}")
    for sample in samples if task.yes_no else ():
        if sample.target not in ("yes", "no"):
            raise ValueError(
                f"sample {sample.id} of {task.name} has the target {sample.target!r}; that of a yes/no "
                "question must be yes or no"
            )


def write_job(job: Job, runs: Sequence[RunPlan]) -> None:
    """Note which runs belong to the latest job of an output folder."""
    listed = []
    for plan in runs:
        path = str(plan.path.relative_to(job.output))
        run = {"task": plan.task.name, "label": plan.variant.label, "path": path}
        of = plan.variant.baseline_of
        listed.append(run if of is None else run | {"baseline_of": of})
    write_json(job.output / JOB, {"settings": plain(job.settings), "runs": listed})


def read_plans(output: Path, *, trust: bool = False) -> list[RunPlan]:
    """The runs of the latest job of an output folder, without a model.

    Args:
        output: of the job.
        trust: whether manifests that somebody edited count.

    Raises:
        FileNotFoundError: there was no job, or its data are gone.
        ValueError: the file is damaged.
        ResumeError: data or protocol are others than those that were asked about.
    """
    settings, listed = _read_job(output)
    job = make_job(settings | {"output": str(output)})
    check_writable(output)
    data = open_data(job.data, output / "data")
    runs = []
    ran = [name for name in job.tasks if name in {run["task"] for run in listed}]  # others had no data
    for each in [_task_plan(job, name, data) for name in ran or job.tasks]:
        task = each.task.name
        variants = {variant.label: variant for variant in baselines.rows(job, each.task)}
        own = [run for run in listed if run["task"] == task]
        for label in variants.keys() - {run["label"] for run in own}:
            raise ValueError(f"{output / JOB} lists no run of {task} · {label}; run vlmfix eval again")
        for run in own:  # those that are not among the variants were made to match one of them
            made = Variant(run["label"], (), baseline_of=run.get("baseline_of"))
            variant, path = variants.get(run["label"], made), output / run["path"]
            asked = run_key.key_of_data(task, each.used, each.task.protocol, variant.prompt_change)
            known = read_manifest(path, trust=trust)["key"]
            lines = differences({part: known.get(part) for part in asked}, asked)
            if lines:
                raise ResumeError(f"{path} is about other data or another protocol ({'; '.join(lines)})")
            runs.append(RunPlan(each.task, each.samples, variant, path, each.subset))
    return runs


def _read_job(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `write_job` wrote: the settings, and the runs with task, label, path and, of some, baseline.

    Raises:
        FileNotFoundError: there was no job.
        ValueError: the file is damaged.
    """
    path = output / JOB
    if not path.is_file():
        raise FileNotFoundError(f"{output} holds no job (no {JOB}); run vlmfix eval --output {output} first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        runs = [dict(run) for run in content["runs"]]
        if not all(isinstance(run[name], str) for run in runs for name in ("task", "label", "path")):
            raise ValueError("a run is not described in words")
        return dict(content["settings"]), runs
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); run vlmfix eval with the same options again"
        ) from error
