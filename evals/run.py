"""A job at work: what is left to do of each run, as far as it belongs to this process."""

from __future__ import annotations

import functools
import hashlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from evals import identity
from evals.canonical import digest
from evals.job import Job, Variant
from evals.plans import Planned, Prepared, write_job
from evals.share import Share
from evals.store import (
    MANIFEST,
    RECORDS,
    Identity,
    Records,
    ResumeError,
    Run,
    differences,
    item_key,
    read_manifest,
)
from evals.tasks.base import Item, Task, content_hash
from evals.worker import Draw, Worker
from vlmfix.generation import answer_batch
from vlmfix.methods.base import AskingMethod
from vlmfix.prompts import render

# Prompts per forward pass, where nobody says; halved when memory runs out.
_BATCH_SIZES = {"cpu": 32, "cuda": 64}
_LONG_ANSWER = 64


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
        parts = _item_parts(job, task, items, images, rendered)
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
            _explain(planned, key, job.resume, share, watcher)
            run = Run.start(
                planned.path,
                key,
                environment,
                info=_info(used, items[0], rendered),
                allow_change=job.allow_environment_change,
            )
            draws = {}
            for item, sample in planned.identities:
                part = parts[item.id, sample]
                draws[item.id, sample] = Draw(item, sample, part["seed"], item_key(key, part))
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
    own = [draw for draw in draws.values() if share.takes(draw.item)]
    finished = set(records.done) | (set() if job.retry_errors else set(records.failed))
    left = [draw for draw in own if draw.identity not in finished]
    if not left:
        return
    for name in records.torn:
        file = planned.path / RECORDS / name
        watcher.note(f"{file}: the last line was cut off; its item is answered again")
    items = {draw.item.id: draw.item for draw in own}

    def advance(written: list[dict[str, Any]]) -> None:
        scores = []
        for record in (each for each in written if each["status"] == "ok"):
            with suppress(Exception):  # a scorer that fails does so again when all is scored
                cut = record["finish"] == "length"
                scores.append(task.judge(items[record["id"]], record["text"], cut=cut).score)
        watcher.advance(written, scores)

    def parse(item: Item, text: str, cut: bool) -> Any:
        return task.judge(item, text, cut=cut).parsed

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


def _path(job: Job, task: Task, variant: Variant, key: Mapping[str, Any]) -> Path:
    name = "+".join(type(method).__name__.lower() for method in variant.methods) or "greedy"
    return job.output / task.name / f"{name}-{digest(key)[:8]}"


def _explain(planned: Planned, key: Mapping[str, Any], resume: str, share: Share, watcher: Watcher) -> None:
    """Say what becomes of earlier runs of the same methods, and refuse what must not be."""
    path = planned.path
    if resume == "never" and any(not share.is_beside(file) for file in (path / RECORDS).glob("*.jsonl")):
        raise ResumeError(
            f"{path} holds such a run already; choose another --output, or --resume if_possible"
        )
    if (path / MANIFEST).exists():
        return
    others = path.parent.glob(f"{path.name.rpartition('-')[0]}-????????/{MANIFEST}")
    found = {other.parent.name: differences(read_manifest(other.parent)["key"], key) for other in others}
    nearest = min(sorted(found), key=lambda name: len(found[name]), default="")
    why = "; ".join(found.get(nearest, []))
    if resume == "always":
        there = f"; {nearest} is of other settings ({why})" if nearest else ""
        raise ResumeError(f"there is no run {path} to go on with{there}; see --output and --resume")
    if nearest:
        watcher.note(f"a new run {path.name}, not {nearest}: {why}")


def _item_parts(
    job: Job, task: Task, items: Sequence[Item], images: dict[Path, str | None], rendered: Any
) -> dict[Identity, dict[str, Any]]:
    """What belongs to each sample of each item in the key of its answer.

    Raises:
        ValueError: an item cannot be written down.
    """
    parts = {}
    for item in items:
        if item.image is not None and item.image not in images:
            try:
                images[item.image] = hashlib.sha256(item.image.read_bytes()).hexdigest()
            except (OSError, ValueError):
                images[item.image] = None  # it fails when it is asked about
        try:
            content = content_hash(item)
            str(item.image).encode()
        except ValueError as error:
            raise ValueError(f"{item.id} cannot be written down ({error}); mend its texts") from error
        for sample, seed in enumerate(task.protocol.seeds):
            parts[item.id, sample] = {
                "id": item.id,
                "content": content,
                "image": None if item.image is None else images[item.image],
                "prompt": rendered(item.prompt, 0 if item.image is None else 1),
                "seed": job.seed + seed,
                "sample": sample,
            }
    return parts


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
