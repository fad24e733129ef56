"""Hosts: where the model of a job is, and what a job asks of it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol
from weakref import WeakSet

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.api import prompt_under
from vlmfix.evaluation.files.hashing import plain
from vlmfix.evaluation.runner import run_key
from vlmfix.evaluation.runner.config import Job
from vlmfix.evaluation.runner.matched_baselines import AnswerIds
from vlmfix.evaluation.runner.records import Draw, Judge
from vlmfix.evaluation.runner.turns import Turns, take_turns
from vlmfix.evaluation.runner.variants import Variant
from vlmfix.evaluation.runner.worker import Worker, decoding_of
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocols import Protocol as TaskProtocol
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.chat import render
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.decoding import plain_decoding
from vlmfix.methods.baselines.output_shift import answer_ids
from vlmfix.methods.suitability import profile_values

# Prompts per forward pass, where nobody says; halved when memory runs out.
_BATCH_SIZES = {"cpu": 32, "cuda": 64}
_LONG_ANSWER = 64
# Of small models on a CPU, in parameters: what a step costs beside arithmetic is most of it.
_SMALL, _OF_SMALL = 10**9, 64

Question = tuple[str, bool]
"""A prompt before any template, and whether it is about an image."""


@dataclass(frozen=True)
class About:
    """What only a loaded model tells of a variant.

    Args:
        methods: see `run_key.method_identity`, in the order of attachment.
        profiles: what they take from the profile of the checkpoint.
        decoding: arguments of `model.generate`.
        prompts: what is asked in place of each question, chat template included.
    """

    methods: list[dict[str, Any]]
    profiles: Any
    decoding: Any
    prompts: Mapping[Question, str]


@dataclass(frozen=True)
class Assignment:
    """How the samples of a run are answered.

    Args:
        variant: methods and decoding.
        protocol: of the task.
        batch_size: prompts per forward pass; 0: the host finds one.
        answer_ids: see `vlmfix.evaluation.runner.worker.Worker`.
    """

    variant: Variant
    protocol: TaskProtocol
    batch_size: int
    answer_ids: AnswerIds | None


class Request(NamedTuple):
    """Samples of a run, in any order, and what they are answered and judged by."""

    assignment: Assignment
    draws: Sequence[Draw]
    judge: Judge


class Host(Protocol):
    """A model somewhere."""

    takes_turns: ClassVar[bool]
    """Whether several runs about the same pictures are best answered together."""

    def job(self, job: Job) -> Job:
        """See `Job.on`."""

    def check(self, variants: Sequence[Variant]) -> None:
        """Refuse methods that do not go with the model, with an UnsupportedError."""

    def identity(self, name: str) -> dict[str, Any]:
        """See `run_key.model_identity`."""

    def environment(self) -> dict[str, Any]:
        """See `run_key.environment`."""

    def about(self, variant: Variant, protocol: TaskProtocol, questions: Collection[Question]) -> About:
        """What the model tells of a variant that answers questions."""

    def answer_ids(self) -> AnswerIds:
        """Tokens that say yes and no; an UnsupportedError where there are none."""

    def decode(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of tokens, without special ones."""

    def answers(self, requests: Sequence[Request]) -> Turns:
        """Answer all requests; see `Worker.answers`."""


class LocalHost:
    """A model in this process.

    Args:
        model: as `vlmfix.load` gives it.
        processor: with it.
    """

    takes_turns: ClassVar = True

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model = model
        self.processor = processor
        self._render = functools.cache(functools.partial(render, processor=processor))

    def job(self, job: Job) -> Job:
        return job.on(self.model)

    def check(self, variants: Sequence[Variant]) -> None:
        for variant in variants:
            with ExitStack() as stack:
                for method in variant.methods:
                    if method.attaches:
                        stack.enter_context(method(self.model, self.processor))

    def identity(self, name: str) -> dict[str, Any]:
        return run_key.model_identity(self.model, self.processor, name)

    def environment(self) -> dict[str, Any]:
        return run_key.environment(self.model)

    def about(self, variant: Variant, protocol: TaskProtocol, questions: Collection[Question]) -> About:
        methods = variant.methods
        return About(
            [run_key.method_identity(method, self.model) for method in methods],
            plain(profile_values(methods, self.model)),
            plain(decoding_of(self.model, methods, protocol, variant.decoding)),
            {(text, about): self._asked(prompt_under(methods, text), about) for text, about in questions},
        )

    def _asked(self, text: str, about_image: bool) -> str:
        try:
            return self._render(text, int(about_image))
        except ValueError:  # a prompt that no model takes fails when its turn comes, and alone
            return text

    def answer_ids(self) -> AnswerIds:
        return answer_ids(self.processor.tokenizer)

    def decode(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self.processor.batch_decode(token_ids, skip_special_tokens=True)
        return texts

    def answers(self, requests: Sequence[Request]) -> Turns:
        _warm_up(self.model, self.processor)
        yield from take_turns([(self._worker(each), each.draws) for each in requests])

    def _worker(self, request: Request) -> Worker:
        how = request.assignment
        size = how.batch_size or default_batch_size(
            self.model.device.type, how.protocol, self.model.num_parameters()
        )
        return Worker(
            self.model,
            self.processor,
            how.variant.methods,
            how.protocol,
            request.judge,
            size,
            how.answer_ids,
            how.variant.decoding,
        )


def question_of(sample: Sample) -> Question:
    """What a sample asks."""
    return sample.prompt, sample.image is not None


def default_batch_size(device: str, protocol: TaskProtocol, parameters: int | None = None) -> int:
    """Prompts per forward pass on a type of device.

    Args:
        device: its type.
        protocol: which says how long answers can be.
        parameters: how many the model has; None: not known.
    """
    if device == "cpu" and parameters is not None and parameters < _SMALL:
        return _OF_SMALL
    size = _BATCH_SIZES.get(device, 8)
    return size if protocol.max_new_tokens <= _LONG_ANSWER else size // 2


_warm: WeakSet[PreTrainedModel] = WeakSet()


def _warm_up(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Pay for what only the first answer of a process costs, before time is measured."""
    if model in _warm:
        return
    _warm.add(model)
    grey = Image.new("RGB", (224, 224), (128, 128, 128))
    decoding = plain_decoding(model, {"max_new_tokens": 2})
    answer_batch(model, processor, [Conversation.of(grey, "Hello")] * 2, **decoding)
