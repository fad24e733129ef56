"""A model that answers requests: what is in the server, and its threads."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine.compatibility import stock_model
from vlmfix.serve import schema
from vlmfix.serve.addresses import Allowed
from vlmfix.serve.errors import RequestError
from vlmfix.serve.job import Job, Row
from vlmfix.serve.limits import IN_FLIGHT, Limits
from vlmfix.serve.metrics import Metrics
from vlmfix.serve.naming import Catalogue
from vlmfix.serve.reading import Reader
from vlmfix.serve.waiting import Waiting
from vlmfix.serve.worker import Worker

T = TypeVar("T")

_PREPARING = 4
"""Requests whose pictures are read at the same time."""


class Service:
    """One model with its queue and its threads.

    Args:
        model: any that `vlmfix.generate` takes.
        processor: of the model.
        catalogue: the names of what it serves.
        limits: what it takes on.
        allowed: where pictures may come from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        catalogue: Catalogue,
        limits: Limits,
        allowed: Allowed,
    ) -> None:
        model = stock_model(model)
        self.catalogue = catalogue
        self.limits = limits
        self.metrics = Metrics()
        self.is_stopping = False
        self._reader = Reader(model, processor, catalogue, limits, allowed)
        self._waiting = Waiting(limits.batch_size)
        self.workers = [
            Worker(each, copy.deepcopy(processor), self._waiting, self.metrics)
            for each in (model, *(_twin(model) for _ in range(limits.parallel - 1)))
        ]
        self._pool = ThreadPoolExecutor(_PREPARING, "vlmfix-serve-pictures")
        self._pixels = 0
        self.metrics.open_requests.set_function(lambda: self._open)
        self.metrics.waiting.set_function(lambda: len(self._waiting))
        self._open = 0

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return all(each.is_alive() for each in self.workers) and not self.is_stopping

    def start(self) -> None:
        """Begin to work."""
        for each in self.workers:
            each.start()

    def stop(self) -> None:
        """Finish what waits, and end; requests that nobody waits for are left out."""
        self.is_stopping = True
        self._waiting.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for each in self.workers:
            if each.is_alive():
                each.join()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Within the block, a request counts as one that is in the server.

        Raises:
            RequestError: there are too many (429), or the server stops (503).
        """
        if not self.is_ready:
            raise RequestError(503, "the server is stopping", code="stopping")
        if self._open >= self.limits.requests:
            raise RequestError(
                429,
                f"{self._open} requests are in the server already, which is its limit; try again later",
                code="rate_limit_exceeded",
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @contextmanager
    def holding(self, pixels: int) -> Iterator[None]:
        """Within the block, so many pixels of a request are in memory.

        Raises:
            RequestError: there are too many (429).
        """
        if self._pixels + pixels > self.limits.pixels * IN_FLIGHT:
            raise RequestError(
                429,
                "too many pictures are in the server already; try again later",
                code="rate_limit_exceeded",
            )
        self._pixels += pixels
        try:
            yield
        finally:
            self._pixels -= pixels

    async def look_at(self, request: schema.ChatRequest) -> tuple[list[Image.Image], int]:
        """See `Reader.look_at`."""
        return await self._in_pool(self._reader.look_at, request)

    async def prepare(
        self, request: schema.ChatRequest, images: Sequence[Image.Image]
    ) -> tuple[Job, list[Row]]:
        """See `Reader.prepare`."""
        return await self._in_pool(self._reader.prepare, request, images, asyncio.get_running_loop())

    def submit(self, rows: Sequence[Row]) -> None:
        """Let answers wait for the model."""
        self._waiting.put(rows)

    async def _in_pool(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args))


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in modules of their own, to which other methods may be attached at the same time."""
    weights = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, weights)
