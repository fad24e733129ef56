"""Start of a run: its key, its directory, and what it asks."""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.hashing import differences, digest
from vlmfix.evaluation.files.hashing import shard as hashed_shard
from vlmfix.evaluation.runner import run_key
from vlmfix.evaluation.runner.config import Job
from vlmfix.evaluation.runner.host import Host, question_of
from vlmfix.evaluation.runner.plan import RunPlan, TaskPlan
from vlmfix.evaluation.runner.records import Draw
from vlmfix.evaluation.runner.run_store import (
    MANIFEST,
    RECORDS,
    Identity,
    Records,
    ResumeError,
    RunStore,
    read_manifest,
    sample_key,
)
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.evaluation.sample import Sample, content_hash
from vlmfix.evaluation.tasks.base import Task


@dataclass(frozen=True)
class ActiveRun:
    """A run that was begun, and all that it asks."""

    task_plan: TaskPlan
    plan: RunPlan
    run: RunStore
    draws: Mapping[Identity, Draw]

    def read(self) -> Records:
        """What was answered so far."""
        return self.run.read({identity: draw.key for identity, draw in self.draws.items()})

    def untried(self, of: int) -> set[int]:
        """Which of a number of shares have samples that nobody has tried."""
        records = self.read()
        missing = self.draws.keys() - records.done.keys() - records.failed.keys()
        return {hashed_shard(self.draws[identity].sample.cluster, of) for identity in missing}


class RunStarter:
    """Makes the directories of the runs of a job.

    Args:
        job: what to do.
        host: of the model.
        shard: of this process.
        note: is told why earlier runs are left alone.
    """

    def __init__(
        self,
        job: Job,
        host: Host,
        shard: Shard,
        note: Callable[[str], None],
    ) -> None:
        self.job = job
        self.host = host
        self.shard = shard
        self.note = note
        self._about_model = host.identity(job.model)
        self._environment = host.environment()
        self._images: dict[Path, str | None] = {}
        self._parts: dict[str, dict[Identity, dict[str, Any]]] = {}

    def begin(
        self,
        task_plan: TaskPlan,
        variant: Variant,
        *,
        settings: Mapping[str, Any] | None = None,
        calibrated_on: Mapping[str, str] | None = None,
    ) -> ActiveRun:
        """Make a run, or go on with it.

        Args:
            task_plan: task and samples.
            variant: what answers them.
            settings: name and parameters of a variant without methods; None: it is plain decoding.
            calibrated_on: of a baseline that was made to match runs, see
                `vlmfix.evaluation.runner.matched_baselines.Matched`.

        Raises:
            ResumeError: the run cannot go on, or must not.
            ValueError: a sample cannot be written down, or a method lacks a value for this model.
            OSError: the directory cannot be written.
        """
        job, task = self.job, task_plan.task
        questions = {question_of(sample) for sample in task_plan.samples}
        about = self.host.about(variant, task.protocol, questions)
        methods = about.methods + ([] if settings is None else [dict(settings)])
        key = run_key.run_key(
            task=task.name,
            data=task_plan.used,
            protocol=task.protocol,
            model=self._about_model,
            methods=methods,
            seed=job.seed,
            prompt_change=variant.prompt_change,
            decoding=variant.decoding,
            calibrated_on=calibrated_on,
        )
        if task.name not in self._parts:
            self._parts[task.name] = _sample_parts(job, task, task_plan.samples, self._images)
        parts = [each["name"] for each in methods]
        parts += [f"{argument}={value}" for argument, value in variant.decoding.items()]
        name = "+".join(parts) or variant.label.replace(" ", "-")
        path = job.output / task.name / f"{name}-{digest(key)[:8]}"
        plan = RunPlan(task, task_plan.samples, variant, path, task_plan.subset)
        if job.resume == "never":
            _refuse_records(path, self.shard)
        if calibrated_on is None:
            _explain(plan, key, job.resume, self.note)

        info = _info(task_plan.used, about.prompts[question_of(task_plan.samples[0])]) | {
            "profiles": about.profiles,
            "decoding": about.decoding,
        }
        run = RunStore.start(
            path, key, self._environment, info=info, allow_change=job.allow_environment_change
        )
        draws = {}
        for sample, repeat in plan.identities:
            prompt = about.prompts[question_of(sample)]
            part = self._parts[task.name][sample.id, repeat] | {"prompt": prompt}
            draws[sample.id, repeat] = Draw(sample, repeat, part["seed"], sample_key(key, part))
        return ActiveRun(task_plan, plan, run, draws)


def _refuse_records(path: Path, shard: Shard) -> None:
    """Refuse to go on with a run, unless it was begun by processes beside this one."""
    if any(not shard.is_beside(file) for file in (path / RECORDS).glob("*.jsonl")):
        raise ResumeError(
            f"{path} holds such a run already; choose another --output, or --resume if_possible"
        )


def _explain(plan: RunPlan, key: Mapping[str, Any], resume: str, note: Callable[[str], None]) -> None:
    """Say what becomes of earlier runs of the same methods, and refuse to begin where there must be one."""
    path = plan.path
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
        note(f"a new run {path.name}, not {nearest}: {why}")


def _sample_parts(
    job: Job, task: Task, samples: Sequence[Sample], images: dict[Path, str | None]
) -> dict[Identity, dict[str, Any]]:
    """What belongs to each repeat of each sample in the key of its answer, apart from the prompt.

    Raises:
        ValueError: a sample cannot be written down.
    """
    parts = {}
    for sample in samples:
        if sample.image is not None and sample.image not in images:
            try:
                images[sample.image] = hashlib.sha256(sample.image.read_bytes()).hexdigest()
            except (OSError, ValueError):
                images[sample.image] = None  # it fails when it is asked about
        try:
            content = content_hash(sample)
            str(sample.image).encode()
        except ValueError as error:
            raise ValueError(f"{sample.id} cannot be written down ({error}); fix its texts") from error
        for repeat, seed in enumerate(task.protocol.seeds):
            parts[sample.id, repeat] = {
                "id": sample.id,
                "content": content,
                "image": None if sample.image is None else images[sample.image],
                "seed": job.seed + seed,
                "repeat": repeat,
            }
    return parts


def _info(used: Mapping[str, Mapping[str, Any]], first_prompt: str) -> dict[str, Any]:
    """What a person wants to find in a manifest, beside the key."""
    return {
        "command": shlex.join(sys.argv),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": {role: dict(each) for role, each in used.items()},
        "first_prompt": first_prompt,
    }
