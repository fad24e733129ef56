"""Turns: several runs ask about the same pictures before any of them goes on to the next ones."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch

from vlmfix.engine.kept_readings import keep_readings
from vlmfix.evaluation.runner.loading import KeptPictures
from vlmfix.evaluation.runner.memory import available_memory
from vlmfix.evaluation.runner.records import Draw
from vlmfix.evaluation.runner.worker import Worker

# Batches of a turn: of more, fewer are left half empty, and fewer need less memory.
_BATCHES = 4
# What is kept takes one part in so many of the memory that is free. That of a machine is for all its workers.
_PARTS = {"cuda": 4}
_OF_MACHINE = 16

Turns = Generator[tuple[int, list[dict[str, Any]]], None, None]
"""Records, batch by batch, each with the number of its run."""


def take_turns(runs: Sequence[tuple[Worker, Sequence[Draw]]]) -> Turns:
    """Answer several runs with one model, picture by picture.

    Runs take turns over chunks of pictures, a few batches large. Until the last run has answered a chunk,
    what the first one loads, and what the model reads for it as it does for others, is kept within a part of
    the free memory. A run that is alone, or alone with what is left, does not stop at chunks.

    Args:
        runs: a worker and what it answers, all with one model.
    """
    size = _BATCHES * max(worker.batch_size for worker, _ in runs)
    for parts in _chunks([draws for _, draws in runs], size):
        if len(parts) == 1:
            for number, part in parts.items():
                yield from _numbered(number, runs[number][0], part)
            continue
        model = runs[0][0].model
        pictures = KeptPictures(available_memory(torch.device("cpu")) // _OF_MACHINE)
        limit = available_memory(model.device) // _PARTS.get(model.device.type, _OF_MACHINE)
        with keep_readings(model, limit):
            for number, part in parts.items():
                worker = runs[number][0]
                worker.pictures = pictures
                yield from _numbered(number, worker, part)
                worker.pictures = None


def _numbered(number: int, worker: Worker, draws: Sequence[Draw]) -> Turns:
    with closing(worker.answers(draws)) as batches:
        for records in batches:
            yield number, records


def _chunks(runs: Sequence[Sequence[Draw]], size: int) -> Iterator[dict[int, list[Draw]]]:
    """What each run that has something to do answers in a turn: whole pictures, in the order of a worker, of
    about `size` questions; those about which a single run asks come in one turn, as long as they follow each
    other."""
    asked = sorted(
        ((draw, number) for number, draws in enumerate(runs) for draw in draws),
        key=lambda each: each[0].order,
    )
    chunk: dict[int, list[Draw]] = {}
    for _, group in itertools.groupby(asked, key=lambda each: each[0].sample.cluster):
        picture: dict[int, list[Draw]] = {}
        for draw, number in group:
            picture.setdefault(number, []).append(draw)
        largest = max(len(chunk.get(number, [])) + len(draws) for number, draws in picture.items())
        is_alone = len(picture) == 1 and chunk.keys() == picture.keys()
        if chunk and not is_alone and (largest > size or len(chunk) == 1):
            yield dict(sorted(chunk.items()))
            chunk = {}
        for number, draws in picture.items():
            chunk.setdefault(number, []).extend(draws)
    yield dict(sorted(chunk.items()))
