"""Pictures and prompts of batches, read and processed while the model is at work on the batch before."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image
from torch import Tensor
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


class KeptPictures:
    """Pictures and batches that one run has loaded, for others that ask about the same pictures; within a
    number of bytes, and what does not fit is not kept.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.opened: dict[Path, Image.Image] = {}
        self.prepared: dict[tuple[Any, ...], Prepared] = {}

    def keep_picture(self, path: Path, picture: Image.Image) -> None:
        """Keep a picture, if there is room."""
        if self._takes(picture.width * picture.height * len(picture.getbands())):
            self.opened[path] = picture

    def keep_batch(self, key: tuple[Any, ...], prepared: Prepared) -> None:
        """Keep the inputs of a batch, if there is room."""
        if self._takes(sum(each.nbytes for each in prepared.inputs.values() if isinstance(each, Tensor))):
            self.prepared[key] = prepared

    def _takes(self, size: int) -> bool:
        if size > self.limit:
            return False
        self.limit -= size
        return True


class Loader:
    """Loads batches in a thread of its own, with a copy of the processor: no two threads can use one.

    Args:
        processor: of the model.
        methods: that act.
        kept: what other runs have loaded, and will want; None: there are none.
    """

    def __init__(
        self, processor: ProcessorMixin, methods: Sequence[vlmfix.Method], kept: KeptPictures | None = None
    ) -> None:
        self._methods = methods
        self._kept = kept
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
                opened[path] = self._opened(path)
            except Exception as error:  # readers of image formats raise what they like
                opened[path] = error
        asked = []
        words = []
        for sample in samples:
            picture = None if sample.image is None else opened[sample.image]
            if not isinstance(picture, Exception):
                text = prompt_under(self._methods, sample.prompt)
                asked.append(Conversation.of(picture, text))
                words.append((sample.image, text))
        prepared: Prepared | None = None
        if asked and self._processor is not None:
            with suppress(Exception):  # it comes again when the batch is answered, and is told then
                prepared = self._prepared(self._processor, asked, tuple(words))
        return Loaded(opened, asked, prepared)

    def _opened(self, path: Path) -> Image.Image:
        if self._kept is not None and path in self._kept.opened:
            return self._kept.opened[path]
        [picture] = open_images(path)
        if self._kept is not None:
            self._kept.keep_picture(path, picture)
        return picture

    def _prepared(
        self, processor: ProcessorMixin, asked: Sequence[Conversation], words: tuple[Any, ...]
    ) -> Prepared:
        """What the model reads of a batch; `words` tells it apart from others."""
        show = pictures_under(self._methods, processor)
        if show is not None or self._kept is None:
            return prepare_batch(processor, asked, show)
        prepared = self._kept.prepared.get(words)
        if prepared is None:
            prepared = prepare_batch(processor, asked)
            self._kept.keep_batch(words, prepared)
        inputs = prepared.inputs
        return prepared._replace(inputs=type(inputs)(dict(inputs)))  # which moves itself to the device
