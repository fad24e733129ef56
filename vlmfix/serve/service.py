"""A model that answers requests: from the fields of a request to a job that the worker can do."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.api import prompt_under
from vlmfix.inference.conversation import read_messages
from vlmfix.inference.rendering import model_inputs
from vlmfix.inference.sampling import seed_of
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.models.reasoning_marks import ReasoningMarks
from vlmfix.serve import schema
from vlmfix.serve.addresses import Allowed, read_address
from vlmfix.serve.errors import RequestError
from vlmfix.serve.job import Decoding, Job, Row
from vlmfix.serve.limits import IN_FLIGHT, Limits
from vlmfix.serve.metrics import Metrics
from vlmfix.serve.naming import Catalogue, Plan
from vlmfix.serve.pictures import decode, look_at
from vlmfix.serve.waiting import Waiting
from vlmfix.serve.worker import Worker

T = TypeVar("T")

_PREPARING = 4
"""Requests whose pictures are read at the same time."""


class Service:
    """One model with its queue and its threads.

    Args:
        model: stock, as `vlmfix.generate` takes it.
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
        self.catalogue = catalogue
        self.limits = limits
        self.metrics = Metrics()
        self.is_stopping = False
        self._allowed = allowed
        # A tokenizer is no place for two threads.
        self._reader = copy.deepcopy(processor)
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
        config: Any = model.config.get_text_config()
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        tokenizer: Any = self._reader.tokenizer
        self._longest_token = max(map(len, tokenizer.get_vocab()))

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

    async def look_at(self, request: schema.ChatRequest) -> tuple[Sequence[Any], int]:
        """The pictures of a request, not decoded yet, and their pixels.

        Raises:
            RequestError: one cannot be had or read, or they are too large.
        """
        urls = [
            part.image_url.url
            for message in request.messages
            if not isinstance(message.content, str)
            for part in message.content
            if isinstance(part, schema.ImagePart)
        ]
        return await self._in_pool(self._look_at, urls)

    def _look_at(self, urls: Sequence[str]) -> tuple[Sequence[Any], int]:
        files, left = [], self.limits.bytes
        for url in urls:
            files.append(read_address(url, self._allowed, left))
            left -= len(files[-1])
        return look_at(files, self.limits.pixels)

    async def prepare(self, request: schema.ChatRequest, images: Sequence[Any]) -> tuple[Job, list[Row]]:
        """What the worker needs to answer a request.

        Args:
            request: its fields.
            images: its pictures.

        Raises:
            RequestError, ValueError, UnsupportedError: it cannot be answered.
        """
        return await self._in_pool(self._prepare, request, images, asyncio.get_running_loop())

    def submit(self, rows: Sequence[Row]) -> None:
        """Let answers wait for the model."""
        self._waiting.put(rows)

    async def _in_pool(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args))

    def _prepare(
        self, request: schema.ChatRequest, images: Sequence[Any], loop: asyncio.AbstractEventLoop
    ) -> tuple[Job, list[Row]]:
        plan = self.catalogue.plan(request.model, request.method)
        methods = plan.make_methods()
        temperature = request.temperature
        if temperature is None:
            temperature = 0.0 if request.top_p is None else 1.0
        top_p = 1.0 if request.top_p is None else request.top_p
        samples = temperature > 0
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if samples else {}
        wanted = plan.decoding(methods, {"do_sample": False, "max_new_tokens": 1, **sampling})
        beams = wanted.get("num_beams", 1)
        searches = beams > 1 or "custom_generate" in wanted
        steps = not searches and not any(isinstance(each, MultiPassMethod) for each in methods)
        self._check_search(request, plan, wanted, steps=steps)
        self._check_texts(request)
        conversation = read_messages(_messages(request, decode(images)))
        asked = conversation.asking(partial(prompt_under, methods))
        prompt: list[int] = model_inputs([asked], self._reader)["input_ids"][0].tolist()
        marks = ReasoningMarks.of(self._reader)
        decoding = Decoding(
            max_tokens=self._max_tokens(request, len(prompt)),
            temperature=wanted.get("temperature") or 0.0 if wanted["do_sample"] else 0.0,
            top_p=wanted.get("top_p") or 1.0,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            stops=request.stops,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        job = Job(
            plan=plan,
            conversation=asked,
            prompt_tokens=len(prompt),
            opens_reasoning=marks is not None and marks.is_opened_by(prompt, self._reader),
            decoding=decoding,
            steps=steps,
            streams=bool(request.stream),
            loop=loop,
        )
        # Without sampling, all choices are the same one.
        count = (request.n or 1) if decoding.temperature else 1
        return job, [Row(job, index, seed_of(decoding.seed, "choice", index)) for index in range(count)]

    def _check_search(
        self, request: schema.ChatRequest, plan: Plan, wanted: Mapping[str, Any], *, steps: bool
    ) -> None:
        """Refuse what a search over whole answers does not do.

        Raises:
            RequestError: it is asked for.
        """
        beams = wanted.get("num_beams", 1)
        if beams > self.limits.batch_size:
            raise RequestError(
                422,
                f"{plan.text} decodes with {beams} beams; this server has room for {self.limits.batch_size}",
                code="unsupported",
                param="model",
            )
        if not steps and request.logprobs:
            raise RequestError(
                422,
                f"{plan.text} chooses between whole answers or asks several times, so that no single step "
                "has the probability of a token; leave logprobs out",
                code="unsupported",
                param="logprobs",
            )
        if wanted["do_sample"] and (beams > 1 or "custom_generate" in wanted):
            raise RequestError(
                422,
                f"{plan.text} searches for the best answer and draws none; leave temperature and top_p out",
                code="unsupported",
                param="temperature",
            )

    def _check_texts(self, request: schema.ChatRequest) -> None:
        """Refuse texts that no tokens could make short enough, before they are read.

        Raises:
            RequestError: they are too long.
        """
        if self._context is None:
            return
        length = sum(len(text) for message in request.messages for text in _texts(message.content))
        if length > self._context * self._longest_token:
            raise RequestError(
                400,
                f"the texts have {length} characters; the model has room for {self._context} tokens",
                code="context_length_exceeded",
                param="messages",
            )

    def _max_tokens(self, request: schema.ChatRequest, prompt: int) -> int:
        """Tokens of an answer at most.

        Raises:
            RequestError: more are wanted than the server or the model has room for.
        """
        wanted = request.max_tokens if request.max_tokens is not None else request.max_completion_tokens
        if wanted is not None and wanted > self.limits.tokens:
            raise RequestError(
                400,
                f"max_tokens is {wanted}; this server writes at most {self.limits.tokens}",
                code="max_tokens_too_large",
                param="max_tokens",
            )
        if self._context is None:
            return self.limits.tokens if wanted is None else wanted
        room = self._context - prompt
        if room < (wanted or 1):
            raise RequestError(
                400,
                f"the prompt has {prompt} tokens, image tokens included, and max_tokens is {wanted or 1}; "
                f"the model has room for {self._context} together",
                code="context_length_exceeded",
                param="messages",
            )
        return min(room, self.limits.tokens) if wanted is None else wanted


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in modules of their own, to which other methods may be attached at the same time."""
    weights = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, weights)


def _texts(content: str | Sequence[Any]) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part.text for part in content if isinstance(part, schema.TextPart)]


def _messages(request: schema.ChatRequest, images: Sequence[Any]) -> list[dict[str, Any]]:
    """The messages in the format of `apply_chat_template`, with opened pictures in the place of addresses."""
    left = iter(images)

    def part(given: schema.TextPart | schema.ImagePart) -> dict[str, Any]:
        if isinstance(given, schema.TextPart):
            return {"type": "text", "text": given.text}
        return {"type": "image", "image": next(left)}

    def content(given: str | Sequence[Any]) -> str | list[dict[str, Any]]:
        return given if isinstance(given, str) else list(map(part, given))

    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": content(message.content),
        }
        for message in request.messages
    ]
