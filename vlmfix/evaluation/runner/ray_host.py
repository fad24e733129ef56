"""A model on a Ray cluster: an actor a GPU, or a node, that answers what the driver sends and keeps nothing.

Plain actors, and not Ray Data: a model is loaded once for all runs of a job and not once a pipeline, and what
an actor has answered is on the driver's disk batch by batch, so that little is lost with it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

import vlmfix
from vlmfix.evaluation.files.hashing import differences
from vlmfix.evaluation.runner.config import Job
from vlmfix.evaluation.runner.host import (
    About,
    Assignment,
    Question,
    Request,
    default_batch_size,
)
from vlmfix.evaluation.runner.matched_baselines import AnswerIds
from vlmfix.evaluation.runner.ray_actor import Actor, Load
from vlmfix.evaluation.runner.records import Draw, Judge, judged
from vlmfix.evaluation.runner.turns import Turns
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.evaluation.runner.writing import Batches
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.failures import one_line, words

# Parts that each actor gets of a run, so that all of them end at about the same time.
_PARTS = 4
# Seconds after which the user is told of a cluster that has no room yet.
_PATIENCE = 60
# What is said of an actor that died, alone or with its node.
_GONE = (RayActorError, ObjectLostError, OutOfMemoryError)
# Actors that may die one after another without an answer in between.
_DEATHS = 3


@dataclass
class _Part:
    """Draws that an actor works on, and the stream of its records."""

    actor: Any
    stream: Any
    left: dict[tuple[str, int], Draw]


@dataclass
class RayHost:
    """The model of a job on the actors of a cluster.

    Args:
        name: of the model, by which it is loaded.
        load: loads it.
        device: of an actor, such as "cuda:0".
        options: what Ray gives to each actor, such as `num_gpus`.
        count: of actors.
        note: is told of actors that die.
    """

    name: str
    load: Load
    device: str
    options: Mapping[str, Any]
    count: int
    note: Callable[[str], None]
    takes_turns: ClassVar = False
    _starting: dict[Any, Any] = field(default_factory=dict)
    _idle: list[Any] = field(default_factory=list)
    _about: dict[str, Any] = field(default_factory=dict)
    _deaths: int = 0

    def start(self) -> None:
        """Start all actors and wait for the first one; the others join when their model is loaded.

        Raises:
            OSError: actors die before they are ready.
            ValueError: as loading says.
        """
        for _ in range(self.count):
            self._start_one()
        done, _ = ray.wait(list(self._starting), num_returns=1, timeout=_PATIENCE)
        if not done:
            self.note(f"waits for the cluster to start one of {self.count} actors, with {dict(self.options)}")
        self._wait()

    def _wait(self) -> None:
        """Wait until an actor is idle."""
        while not self._idle:
            [done], _ = ray.wait(list(self._starting), num_returns=1)
            self._join(done)

    def _start_one(self) -> None:
        actor = ray.remote(Actor).options(**self.options).remote()
        self._starting[actor.load.remote(self.load, self.device, self.name)] = actor

    def _join(self, ready: Any) -> None:
        """Take an actor whose model is loaded.

        Raises:
            ValueError: it is unlike the first one.
        """
        actor = self._starting.pop(ready)
        try:
            about = _get(ready)
        except _GONE as error:
            self._bury(actor, error)
            return
        self._about = self._about or about
        if about["vlmfix"] != vlmfix.__version__:
            raise ValueError(
                f"a node of the cluster has vlmfix {about['vlmfix']}, and this process has "
                f"{vlmfix.__version__}; install the same version everywhere"
            )
        if about != self._about:
            raise ValueError(
                f"the nodes of the cluster differ ({'; '.join(differences(self._about, about))}); use nodes "
                "with the same devices, versions and model"
            )
        self._idle.append(actor)

    def _bury(self, actor: Any, error: Exception) -> None:
        """Start another actor in the place of one that died.

        Raises:
            OSError: one after another dies.
        """
        ray.kill(actor)
        self._deaths += 1
        reason = one_line(str(error).strip().splitlines()[-1])
        if self._deaths >= _DEATHS:
            raise OSError(
                f"{self._deaths} actors died without an answer in between; of the last Ray says: {reason} "
                "What was answered is safe: where memory ran out choose a smaller --batch-size, and start "
                "the same command again"
            )
        self.note(f"an actor died, and another takes its place; Ray says: {reason}")
        self._start_one()

    def _ask(self, question: str, *given: Any) -> Any:
        while True:
            self._wait()
            try:
                return _get(self._idle[0].ask.remote(question, *given))
            except _GONE as error:
                self._bury(self._idle.pop(0), error)

    def job(self, job: Job) -> Job:
        found: Job = self._ask("job", job)
        return found

    def check(self, variants: Sequence[Variant]) -> None:
        self._ask("check", variants)

    def identity(self, name: str) -> dict[str, Any]:
        return dict(self._about["model"])

    def environment(self) -> dict[str, Any]:
        return dict(self._about["environment"])

    def about(self, variant: Variant, protocol: Protocol, questions: Collection[Question]) -> About:
        found: About = self._ask("about", variant, protocol, questions)
        return found

    def answer_ids(self) -> AnswerIds:
        found: AnswerIds = self._ask("answer_ids")
        return found

    def decode(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self._ask("decode", token_ids)
        return texts

    def answers(self, requests: Sequence[Request]) -> Turns:
        """Answer one request after the other on all actors, and what one that dies has left on the others.

        Raises:
            OSError: actors die one after another.
        """
        for number, request in enumerate(requests):
            with closing(self._answers(*request)) as batches:
                for records in batches:
                    yield number, records

    def _answers(self, assignment: Assignment, draws: Sequence[Draw], judge: Judge) -> Batches:
        size = assignment.batch_size or default_batch_size(self.device.partition(":")[0], assignment.protocol)
        parts = deque(_parts(draws, size, self.count * _PARTS))
        busy: dict[Any, _Part] = {}
        try:
            while parts or busy:
                while parts and self._idle:
                    part = self._send(self._idle.pop(), assignment, parts.popleft())
                    busy[part.stream] = part
                waiting = [*busy, *self._starting] if parts else list(busy)
                [done], _ = ray.wait(waiting, num_returns=1, fetch_local=False)
                if done in self._starting:
                    self._join(done)
                    continue
                part = busy[done]
                try:
                    records = _get(next(part.stream))
                except StopIteration:
                    self._idle.append(busy.pop(done).actor)
                    continue
                except _GONE as error:
                    if left := list(busy.pop(done).left.values()):
                        parts.append(left)
                    self._bury(part.actor, error)
                    continue
                self._deaths = 0
                yield [_scored(record, part.left, judge) for record in records]
        finally:
            for part in busy.values():  # what nobody waits for any more
                ray.kill(part.actor)

    def _send(self, actor: Any, assignment: Assignment, draws: Sequence[Draw]) -> _Part:
        paths = {draw.sample.image for draw in draws if draw.sample.image is not None}
        # Targets and notes of samples may be of a benchmark that the nodes do not have.
        asked = [replace(draw, sample=replace(draw.sample, target=None, meta={})) for draw in draws]
        stream = actor.answers.options(num_returns="streaming").remote(
            assignment, asked, {path: _content(path) for path in paths}
        )
        return _Part(actor, stream, {draw.identity: draw for draw in draws})

    def close(self) -> None:
        """End all actors."""
        for actor in (*self._idle, *self._starting.values()):
            ray.kill(actor)


@contextmanager
def on_cluster(job: Job, address: str | None, load: Load, note: Callable[[str], None]) -> Iterator[RayHost]:
    """The model of a job on a Ray cluster: on all of its GPUs, or where it has none, on all of its nodes.

    Args:
        job: whose model it is.
        address: of the cluster; None: as Ray finds it (`RAY_ADDRESS`, a cluster on this machine), else one of
            this machine alone.
        load: loads the model.
        note: is told what happens.

    Raises:
        OSError: there is no cluster, or its actors die.
        ValueError: the cluster has no such device, its nodes differ, or as loading says.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
    own = not ray.is_initialized()
    if own:
        try:
            _knock(address or "")
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(
                f"no Ray cluster at {address or 'the address that Ray finds'} ({words(error)}); start one "
                "with 'ray start --head', or leave --address out; where a cluster asks for a token, set "
                "RAY_AUTH_MODE=token"
            ) from error
    try:
        device, options, count = _actors(
            job.device, [each["Resources"] for each in ray.nodes() if each["Alive"]]
        )
        host = RayHost(job.model, load, device, options, count, note)
        try:
            host.start()
            yield host
        finally:
            host.close()
    finally:
        if own:
            ray.shutdown()


def _knock(address: str) -> None:
    """Find out within seconds that nobody is there; Ray tries for many minutes.

    Raises:
        OSError: nobody is.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_PATIENCE / 6).close()


def _actors(device: str, nodes: Sequence[Mapping[str, float]]) -> tuple[str, dict[str, float], int]:
    """Device of an actor, what it takes of the cluster, and how many there are.

    Raises:
        ValueError: the cluster has no such device.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(
            f"--device {device} is of one machine, and Ray gives each actor a GPU; use auto, cuda or cpu"
        )
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if gpus and device != "cpu":
        return "cuda:0", {"num_gpus": 1, "num_cpus": 1}, gpus
    if device == "cuda":
        raise ValueError("the cluster has no GPU; use --device cpu or auto")
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise ValueError("no node of the cluster has a CPU or GPU to give; start it with --num-cpus")
    return "cpu", {"num_cpus": min(cpus)}, sum(cpu // min(cpus) for cpu in cpus)


def _scored(record: dict[str, Any], left: dict[tuple[str, int], Draw], judge: Judge) -> dict[str, Any]:
    draw = left.pop((record["id"], record["repeat"]))
    if record["status"] != "ok":
        return record
    return record | judged(judge, draw.sample, record["text"], truncated=record["finish"] == "length")


def _parts(draws: Sequence[Draw], size: int, count: int) -> Iterator[list[Draw]]:
    """About this number of parts of whole batches, in the order in which one process would answer."""
    queue = sorted(draws, key=lambda draw: draw.order)
    batches = -(-len(queue) // size)
    length = max(1, batches // count) * size
    for start in range(0, len(queue), length):
        yield queue[start : start + length]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (OSError, ValueError):  # its sample fails, as in a process of this machine
        return None


def _get(reference: Any) -> Any:
    """What an actor gives; raises what it raised."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
