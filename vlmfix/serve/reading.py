"""Requests as the worker takes them, read and checked."""

from __future__ import annotations

import asyncio
import copy
import secrets
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.api import prompt_under
from vlmfix.inference.conversation import Conversation, read_messages
from vlmfix.inference.rendering import model_inputs
from vlmfix.inference.sampling import seed_of
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.methods.validation import check_temperature
from vlmfix.models.reasoning_marks import ReasoningMarks
from vlmfix.serve import schema
from vlmfix.serve.addresses import Allowed, read_address
from vlmfix.serve.errors import RequestError
from vlmfix.serve.job import Decoding, Job, Row
from vlmfix.serve.limits import MOST_BEAMS, Limits
from vlmfix.serve.naming import Catalogue, Plan
from vlmfix.serve.pictures import decode, look_at


class Reader:
    """Reads requests, in several threads.

    Args:
        model: that is asked.
        processor: of the model.
        catalogue: the names of what is served.
        limits: of requests.
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
        self._catalogue = catalogue
        self._limits = limits
        self._allowed = allowed
        self._processor = copy.deepcopy(processor)
        self._one_at_a_time = threading.Lock()  # a tokenizer is no place for two threads
        config: Any = model.config.get_text_config()
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        tokenizer: Any = processor.tokenizer
        self._longest_token = max(map(len, tokenizer.get_vocab()))

    def look_at(self, request: schema.ChatRequest) -> tuple[list[Image.Image], int]:
        """The pictures of a request, not decoded yet, and as how many pixels they count.

        Raises:
            RequestError: one cannot be had or read, or they are too large.
        """
        files, left = list[bytes](), self._limits.bytes
        for message in request.messages:
            for part in () if isinstance(message.content, str) else message.content:
                if isinstance(part, schema.ImagePart):
                    files.append(read_address(part.image_url.url, self._allowed, left))
                    left -= len(files[-1])
        return look_at(files, self._limits.pixels)

    def prepare(
        self, request: schema.ChatRequest, images: Sequence[Image.Image], loop: asyncio.AbstractEventLoop
    ) -> tuple[Job, list[Row]]:
        """What the worker needs to answer a request.

        Args:
            request: its fields.
            images: its pictures, see `look_at`.
            loop: in which the answers are awaited.

        Raises:
            RequestError, ValueError, UnsupportedError: it cannot be answered.
        """
        plan = self._catalogue.plan(request.model, request.method)
        methods = plan.make_methods()
        wanted = plan.decoding(methods, {"max_new_tokens": 1, **_sampling(request)})
        searches = wanted.get("num_beams", 1) > 1 or "custom_generate" in wanted
        steps = not searches and not any(isinstance(each, MultiPassMethod) for each in methods)
        self._check_search(request, plan, wanted, steps=steps)
        self._check_texts(request)
        conversation = read_messages(_messages(request, decode(images)))
        asked = conversation.asking(partial(prompt_under, methods))
        prompt, opens_reasoning = self._read(asked)
        decoding = Decoding(
            max_tokens=self._max_tokens(request, prompt),
            temperature=wanted["temperature"] if wanted["do_sample"] else 0.0,
            top_p=wanted["top_p"] if wanted["do_sample"] else 1.0,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            stops=request.stops,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        job = Job(
            plan=plan,
            conversation=asked,
            prompt_tokens=prompt,
            opens_reasoning=opens_reasoning,
            decoding=decoding,
            steps=steps,
            streams=bool(request.stream),
            loop=loop,
        )
        # Without sampling, all choices are the same one.
        count = (request.n or 1) if decoding.temperature else 1
        return job, [Row(job, index, seed_of(decoding.seed, "choice", index)) for index in range(count)]

    def _read(self, asked: Conversation) -> tuple[int, bool]:
        """Tokens of a prompt, and whether it opens a reasoning part."""
        with self._one_at_a_time:
            prompt: list[int] = model_inputs([asked], self._processor)["input_ids"][0].tolist()
            marks = ReasoningMarks.of(self._processor)
            return len(prompt), marks is not None and marks.is_opened_by(prompt, self._processor)

    def _check_search(
        self, request: schema.ChatRequest, plan: Plan, wanted: Mapping[str, Any], *, steps: bool
    ) -> None:
        """Refuse what a search over whole answers does not do.

        Raises:
            RequestError: it is asked for.
        """
        beams = wanted.get("num_beams", 1)
        if beams > MOST_BEAMS:
            raise RequestError(
                422,
                f"{plan.text} decodes with {beams} beams; this server has room for {MOST_BEAMS}",
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
        if wanted is not None and wanted > self._limits.tokens:
            raise RequestError(
                400,
                f"max_tokens is {wanted}; this server writes at most {self._limits.tokens}",
                code="max_tokens_too_large",
                param="max_tokens",
            )
        if self._context is None:
            return self._limits.tokens if wanted is None else wanted
        room = self._context - prompt
        if room < (wanted or 1):
            raise RequestError(
                400,
                f"the prompt has {prompt} tokens, image tokens included, and max_tokens is {wanted or 1}; "
                f"the model has room for {self._context} together",
                code="context_length_exceeded",
                param="messages",
            )
        return min(room, self._limits.tokens) if wanted is None else wanted


def _sampling(request: schema.ChatRequest) -> dict[str, Any]:
    """Arguments of `model.generate` that draw tokens or not.

    Raises:
        ValueError: a temperature by which no scores can be divided.
    """
    temperature = request.temperature
    if temperature is None:
        temperature = 0.0 if request.top_p is None else 1.0
    check_temperature("temperature", temperature)
    if not temperature:
        return {"do_sample": False}
    top_p = 1.0 if request.top_p is None else request.top_p
    return {"do_sample": True, "temperature": temperature, "top_p": top_p}


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
