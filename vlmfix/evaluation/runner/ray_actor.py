"""Actors: processes of a Ray cluster that answer what the driver sends, and read none of its files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

import vlmfix
from vlmfix.evaluation.runner.host import Assignment, LocalHost, Request
from vlmfix.evaluation.runner.records import Draw
from vlmfix.evaluation.runner.writing import Batches

Load = Callable[[str], tuple[PreTrainedModel, ProcessorMixin]]
"""Loads the model of the job on a device, such as "cuda:0"."""
Pictures = Mapping[Path, bytes | None]
"""Content of the files that samples are about; None: it cannot be read."""


class Actor:
    """One process of the cluster with a model."""

    _host: LocalHost

    def load(self, load: Load, device: str, name: str) -> dict[str, Any]:
        """Load the model.

        Args:
            load: does it.
            device: on which.
            name: of the model.

        Returns:
            What has to be the same on all actors.
        """
        self._host = LocalHost(*load(device))
        return {
            "vlmfix": vlmfix.__version__,
            "model": self._host.identity(name),
            "environment": self._host.environment(),
        }

    def ask(self, question: str, *given: Any) -> Any:
        """What the host says, see `vlmfix.evaluation.runner.host.Host`."""
        return getattr(self._host, question)(*given)

    def answers(self, assignment: Assignment, draws: Sequence[Draw], pictures: Pictures) -> Batches:
        """Records without scores, which are the driver's; pictures need not be where samples say."""
        with tempfile.TemporaryDirectory() as folder:
            here = {path: _put(Path(folder), path, content) for path, content in pictures.items()}
            there = {str(own): str(path) for path, own in here.items()}
            moved = [
                replace(draw, sample=replace(draw.sample, image=here.get(draw.sample.image)))
                if draw.sample.image is not None
                else draw
                for draw in draws
            ]
            with closing(self._host.answers([Request(assignment, moved, lambda *_: {})])) as batches:
                for _, records in batches:
                    yield [_as_on_driver(record, there) for record in records]


def _put(folder: Path, path: Path, content: bytes | None) -> Path:
    """A copy of a file of the driver; where it could not be read, nothing is there."""
    own = folder / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}{path.suffix}"
    if content is not None:
        own.write_bytes(content)
    return own


def _as_on_driver(record: dict[str, Any], there: Mapping[str, str]) -> dict[str, Any]:
    own = record["image"]
    if own is None:
        return record
    changed = {"image": there[own]}
    if "error" in record:
        changed["error"] = record["error"].replace(own, there[own])
    return record | changed
