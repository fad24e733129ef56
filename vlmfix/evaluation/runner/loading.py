"""Pictures and prompts of batches, read and processed while the model is at work on the batch before."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image
from transformers import ProcessorMixin

import vlmfix
from vlmfix.api import pictures_under, prompt_under
from vlmfix.evaluation.sample import Sample
from vlmfix.inference.batch import Prepared, prepare_batch
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.pictures import open_images
from vlmfix.methods.multi_pass import MultiPassMethod


@dataclass(frozen=True)
class Loaded:
    """What a batch asks.

    Args:
        opened: the picture of each file, or why there is none.
        asked: each sample whose picture is there, or that has none.
        prepared: inputs of the model for these; None: they cannot be made, or are made when they are needed.
    """

    opened: Mapping[Path, Image.Image | Exception]
    asked: list[Conversation]
    prepared: Prepared | None

    def failure(self, sample: Sample) -> Exception | None:
        """Why a sample cannot be asked about; None: it can."""
        found = None if sample.image is None else self.opened[sample.image]
        return found if isinstance(found, Exception) else None


class Loader:
    """Loads batches in a thread of its own, with a copy of the processor: no two threads can use one.

    Args:
        processor: of the model.
        methods: that act.
    """

    def __init__(self, processor: ProcessorMixin, methods: Sequence[vlmfix.Method]) -> None:
        self._methods = methods
        self._processor: ProcessorMixin | None = None
        if not any(isinstance(method, MultiPassMethod) for method in methods):
            with suppress(Exception):  # one of a checkpoint's own that cannot be copied loads pictures alone
                self._processor = copy.deepcopy(processor)
        self._thread = ThreadPoolExecutor(1, "vlmfix-loader")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def begin(self, samples: Sequence[Sample]) -> Future[Loaded]:
        """Begin to load a batch, after those that were begun before."""
        return self._thread.submit(self.load, samples)

    def load(self, samples: Sequence[Sample]) -> Loaded:
        """Load a batch; what cannot be read or prepared raises nothing yet."""
        opened: dict[Path, Image.Image | Exception] = {}
        for path in {sample.image for sample in samples if sample.image is not None}:
            try:
                [opened[path]] = open_images(path)
            except Exception as error:  # readers of image formats raise what they like
                opened[path] = error
        asked = []
        for sample in samples:
            picture = None if sample.image is None else opened[sample.image]
            if not isinstance(picture, Exception):
                asked.append(Conversation.of(picture, prompt_under(self._methods, sample.prompt)))
        prepared: Prepared | None = None
        if asked and self._processor is not None:
            with suppress(Exception):  # it comes again when the batch is answered, and is told then
                show = pictures_under(self._methods, self._processor)
                prepared = prepare_batch(self._processor, asked, show)
        return Loaded(opened, asked, prepared)
