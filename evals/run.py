"""A job at work: which items there are, what is left to do of each run, and who does it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from evals import identity
from evals.canonical import digest
from evals.data.hub import HubData
from evals.data.items import limited, shard
from evals.data.sources import open_data
from evals.job import Job, Variant, make_job
from evals.protocols import default_protocol
from evals.store import (
    Identity,
    Records,
    ResumeError,
    Run,
    check_writable,
    differences,
    item_key,
    read_manifest,
    write_json,
)
from evals.tasks import tasks as known_tasks
from evals.tasks.base import Item, Task, content_hash
from evals.worker import Draw, Worker
from vlmfix.generation import answer_batch
from vlmfix.methods.base import AskingMethod
from vlmfix.prompts import render

JOB = "job.json"
# Prompts per forward pass, where nobody says; halved when memory runs out.
_BATCH_SIZES = {"cpu": 32, "cuda": 64}
_LONG_ANSWER = 64
# Number of a process, of all processes, and of the process on its host, as launchers tell them.
_VARIABLES = (
    (("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"), 0),
    (("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"), 1),
    (("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"), 0),
)


@dataclass(frozen=True)
class Share:
    """Which part of the work a process takes.

    Args:
        index: it takes images whose hash modulo `of` is this.
        of: number of processes.
        local: number of the process on its host.
    """

    index: int = 0
    of: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Share:
        """What `accelerate launch`, `torchrun` or `mpirun` tell a process; all of it if nothing did."""
        return cls(
            *(
                next((int(os.environ[name]) for name in names if name in os.environ), default)
                for names, default in _VARIABLES
            )
        )

    @classmethod
    def parse(cls, text: str) -> Share:
        """`i/n`, with i from 0 to n - 1.

        Raises:
            ValueError: it has another form.
        """
        first, _, second = text.partition("/")
        if first.isdecimal() and second.isdecimal() and int(first) < int(second):
            return cls(int(first), int(second), int(first))
        raise ValueError(f"--shard is {text!r}; it must be i/n with i from 0 to n - 1, such as 0/4")

    def takes(self, item: Item) -> bool:
        """Whether an item belongs to it; questions about one image stay together."""
        return shard(item.cluster, self.of) == self.index

    def __str__(self) -> str:
        return f"{self.index}-of-{self.of}"


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def begin(self, title: str, running: str, total: int, done: int) -> None:
        """A run begins, of which `done` items are there; `running` names the mean score of its items."""

    def advance(self, records: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> None:
        """Records were written, and the successful ones have these scores."""

    def end(self) -> None:
        """The run is over."""


@dataclass(frozen=True)
class Prepared:
    """A task of a job, its items in order of ids, and the data files that they are made of."""

    task: Task
    items: list[Item]
    used: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Planned:
    """One run of a job.

    Args:
        task: with data and protocol.
        items: of the job, in order of ids.
        variant: the methods.
        path: of its directory.
    """

    task: Task
    items: list[Item]
    variant: Variant
    path: Path

    @property
    def identities(self) -> Iterator[tuple[Item, int]]:
        """Every item with every sample, in order."""
        for item in self.items:
            for sample in range(len(self.task.protocol.seeds)):
                yield item, sample


def prepare(job: Job, progress: Callable[[int], None] | None = None) -> list[Prepared]:
    """The tasks of a job with their items; needs no model.

    Args:
        job: what to do.
        progress: called with the number of synthetic scenes just drawn.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, or there is no item.
        OSError: the output cannot be written.
    """
    check_writable(job.output)
    data = open_data(job.data, job.output / "data", progress)
    tasks = []
    for name in job.tasks:
        protocol = job.protocols.get(name)
        wanted = "" if protocol is None else protocol.data_set
        data_set = "custom" if isinstance(data, HubData) else data.data_set(name, wanted)
        protocol = (protocol or default_protocol(name, data_set)).on(data_set)
        data.used = {}
        task = known_tasks()[name](data, protocol)
        items = task.items(job.output / "data" / "pope")
        if job.limit is not None:
            items = limited(items, job.limit)
        if not items:
            raise ValueError(f"{name} has no items in the data; check --data and --limit")
        tasks.append(Prepared(task, items, dict(data.used)))
    return tasks


def execute(
    job: Job,
    prepared: Sequence[Prepared],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    share: Share,
    watcher: Watcher,
) -> list[Planned]:
    """Answer what is left of a job, as far as it belongs to this process.

    Args:
        job: what to do.
        prepared: its tasks.
        model: that of the job.
        processor: with it.
        share: of this process.
        watcher: is told about the progress.

    Returns:
        The runs, which others may still be at work on.

    Raises:
        ResumeError: a run cannot go on.
        TooManyErrorsError: too many items failed.
        UnsupportedError: a method does not go with the model.
        ValueError: a method lacks a value for this model.
        OSError: the disk is full.
    """
    for variant in job.variants:  # what does not go together is refused before any work
        with ExitStack() as stack:
            for method in variant.methods:
                if not isinstance(method, AskingMethod):
                    stack.enter_context(method(model, processor))
    _warm_up(model, processor)
    about_model = identity.model_identity(model, processor, job.model)
    environment = identity.environment(model)
    rendered = functools.cache(functools.partial(render, processor=processor))
    images: dict[Path, str | None] = {}
    started: list[tuple[Planned, Run, dict[Identity, Draw]]] = []
    for task, items, used in ((each.task, each.items, each.used) for each in prepared):
        for variant in job.variants:
            key = identity.run_key(
                task=task.name,
                data=used,
                protocol=task.protocol,
                model=about_model,
                methods=[identity.method_identity(method, model) for method in variant.methods],
                seed=job.seed,
            )
            planned = Planned(task, items, variant, _path(job, task, variant, key))
            _explain(planned, key, job.resume, watcher)
            run = Run.start(
                planned.path,
                key,
                environment,
                info=_info(used, items[0], rendered),
                allow_change=job.allow_environment_change,
            )
            draws = {}
            for item, sample in planned.identities:
                seed = job.seed + task.protocol.seeds[sample]
                own = _item_part(item, seed, sample, images, rendered)
                draws[item.id, sample] = Draw(item, sample, seed, item_key(key, own))
            started.append((planned, run, draws))
    write_job(job, [planned for planned, _, _ in started])
    for planned, run, draws in started:
        records = run.read({identity: draw.key for identity, draw in draws.items()})
        _work(job, planned, run, draws, records, model, processor, share, watcher)
    return [planned for planned, _, _ in started]


def _warm_up(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Pay for what only the first answer of a process costs, before time is measured."""
    grey = Image.new("RGB", (224, 224), (128, 128, 128))
    answer_batch(model, processor, [(grey, "Hello")] * 2, max_new_tokens=2, do_sample=False)


def _work(
    job: Job,
    planned: Planned,
    run: Run,
    draws: Mapping[Identity, Draw],
    records: Records,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    share: Share,
    watcher: Watcher,
) -> None:
    """Answer what is left of one run."""
    task = planned.task
    for name in records.torn:
        watcher.note(f"{planned.path / name}: the last line was cut off; its item is answered again")
    own = [draw for draw in draws.values() if share.takes(draw.item)]
    finished = set(records.done) | (set() if job.retry_errors else set(records.failed))
    left = [draw for draw in own if draw.identity not in finished]
    if not left:
        return
    items = {draw.item.id: draw.item for draw in own}

    def judged(record: Mapping[str, Any]) -> float:
        return task.judge(items[record["id"]], record["text"], cut=record["finish"] == "length").score

    def advance(written: list[dict[str, Any]]) -> None:
        watcher.advance(written, [judged(record) for record in written if record["status"] == "ok"])

    def parse(item: Item, text: str) -> Any:
        return task.judge(item, text, cut=False).parsed

    worker = Worker(
        model,
        processor,
        planned.variant.methods,
        task.protocol,
        parse,
        str(share),
        _batch_size(job, task, model),
    )
    title = f"{task.name} · {planned.variant.label}"
    watcher.begin(title, task.running, len(own), len(own) - len(left))
    try:
        worker.work(run, left, max_errors=job.allowed_errors(len(draws)), on_records=advance)
    finally:
        watcher.end()


def write_job(job: Job, runs: Sequence[Planned]) -> None:
    """Note which runs belong to the latest job of an output folder."""
    content = {
        "settings": identity.plain(job.settings),
        "runs": [
            {
                "task": planned.task.name,
                "label": planned.variant.label,
                "path": str(planned.path.relative_to(job.output)),
            }
            for planned in runs
        ],
    }
    write_json(job.output / JOB, content)


def _path(job: Job, task: Task, variant: Variant, key: Mapping[str, Any]) -> Path:
    name = "+".join(type(method).__name__.lower() for method in variant.methods) or "greedy"
    return job.output / task.name / f"{name}-{digest(key)[:8]}"


def _explain(planned: Planned, key: Mapping[str, Any], resume: str, watcher: Watcher) -> None:
    """Say what becomes of earlier runs of the same methods, and refuse what must not be."""
    if planned.path.exists():
        if resume == "never":
            raise ResumeError(
                f"{planned.path} holds such a run already; choose another --output, or --resume if_possible"
            )
        return
    others = sorted(planned.path.parent.glob(f"{planned.path.name.rpartition('-')[0]}-????????"))
    if resume == "always":
        raise ResumeError(
            f"there is no run to go on with in {planned.path.parent}; see --output and --resume"
        )
    for other in others:
        lines = differences(read_manifest(other)["key"], key)
        watcher.note(f"a new run {planned.path.name}, not {other.name}: {'; '.join(lines)}")


def _item_part(
    item: Item, seed: int, sample: int, images: dict[Path, str | None], rendered: Any
) -> dict[str, Any]:
    """What belongs to an item in the key of its answer."""
    if item.image is not None and item.image not in images:
        try:
            images[item.image] = hashlib.sha256(item.image.read_bytes()).hexdigest()
        except OSError:
            images[item.image] = None  # it fails when it is asked about
    return {
        "id": item.id,
        "content": content_hash(item),
        "image": None if item.image is None else images[item.image],
        "prompt": rendered(item.prompt, 0 if item.image is None else 1),
        "seed": seed,
        "sample": sample,
    }


def _info(used: Mapping[str, Mapping[str, Any]], first: Item, rendered: Any) -> dict[str, Any]:
    """What a person wants to find in a manifest, beside the key."""
    return {
        "command": shlex.join(sys.argv),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": {role: dict(each) for role, each in used.items()},
        "first_prompt": rendered(first.prompt, 0 if first.image is None else 1),
    }


def _batch_size(job: Job, task: Task, model: PreTrainedModel) -> int:
    if job.batch_size:
        return job.batch_size
    size = _BATCH_SIZES.get(model.device.type, 8)
    return size if task.protocol.max_new_tokens <= _LONG_ANSWER else size // 2


def planned_again(output: Path) -> list[Planned]:
    """The runs of the latest job of an output folder, without a model.

    Raises:
        FileNotFoundError: there was no job, or its data are gone.
        ValueError: the file is damaged, or the data do not fit.
    """
    content = _read_job(output)
    job = make_job(content["settings"] | {"output": str(output)})
    prepared = {each.task.name: each for each in prepare(job)}
    variants = {variant.label: variant for variant in job.variants}
    return [
        Planned(
            prepared[run["task"]].task,
            prepared[run["task"]].items,
            variants[run["label"]],
            output / run["path"],
        )
        for run in content["runs"]
    ]


def _read_job(output: Path) -> dict[str, Any]:
    """What `write_job` wrote.

    Raises:
        FileNotFoundError: there was no job.
        ValueError: the file is damaged.
    """
    path = output / JOB
    if not path.is_file():
        raise FileNotFoundError(f"{output} holds no job (no {JOB}); run vlmfix eval --output {output} first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); run vlmfix eval with the same options again"
        ) from error
