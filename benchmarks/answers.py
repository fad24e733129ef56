"""Captions and yes/no answers of an embedded model, kept in files so that no prompt is answered twice."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from PIL import Image

import vlmfix
from training.report import presence_items
from vlmfix.engine.context import DecodeContext
from vlmfix.evaluation.datasets import Scene, render, sample_scene
from vlmfix.evaluation.datasets.synthetic.language import with_article
from vlmfix.methods.baselines.output_shift import answer_ids, answer_margins
from vlmfix.methods.grammar import make_methods, parse_methods

NEW_TOKENS = {"captions": 80, "yes-no": 2}
"""Kinds of prompts, and the length limit of their answers in tokens."""


@dataclass(frozen=True)
class Setting:
    """A method by name with the parameters that differ from its defaults; `greedy` is plain decoding. Of
    several methods, joined by `+`, the last one has the parameters.
    """

    method: str
    parameters: dict[str, Any]

    def build(self) -> list[vlmfix.Method]:
        """The methods, new and without counts of earlier runs."""
        last = self.method.rpartition("+")[2]
        return make_methods(parse_methods(self.method, {last: self.parameters}))

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.parameters.items()) or "defaults"


@dataclass(frozen=True)
class Split:
    """The first `count` test scenes of the world `seed` and what is asked about them."""

    name: str
    seed: int
    count: int

    @cached_property
    def scenes(self) -> list[Scene]:
        return [sample_scene(self.seed, index, split="test") for index in range(self.count)]

    @cached_property
    def images(self) -> list[Image.Image]:
        return [render(scene) for scene in self.scenes]

    @cached_property
    def items(self) -> list[tuple[int, str, bool]]:
        """Yes/no questions (scene, category, present): a missing partner and a present category each."""
        return presence_items(self.scenes, "co-occurring")

    def prompts(self, kind: str) -> tuple[list[Image.Image], list[str]]:
        """Images and prompts of a kind: one caption a scene, one question an item."""
        if kind == "captions":
            return self.images, ["Describe the image."] * self.count
        questions = [f"Is there {with_article(category)} in the image?" for _, category, _ in self.items]
        return [self.images[scene] for scene, _, _ in self.items], questions


@dataclass(frozen=True)
class Answers:
    """What a model said.

    Args:
        texts: one a prompt.
        seconds: that all of them took together.
        site_share: share of its sites that the method edited, see `vlmfix.engine.stats`; None if it had
            none, or for greedy.
        image_tokens: of a pruning, mean number of image tokens per layer; None of others.
    """

    texts: list[str]
    seconds: float
    site_share: float | None
    image_tokens: float | None = None


class Speaker:
    """A model that writes its answers to files, one for each setting, split and kind.

    Args:
        model: name or folder for `vlmfix.load`; it runs in float32, where batching changes no answer.
        folder: of the files.
        batch_size: prompts per forward pass.
    """

    def __init__(self, model: str, folder: Path, batch_size: int) -> None:
        self.name = model
        self.folder = folder
        self.batch_size = batch_size
        self.model, self.processor = vlmfix.load(model, dtype="float32")

    def answers(
        self, setting: Setting, split: Split, kind: str, progress: Callable[[int], object]
    ) -> Answers:
        """The answers from their file, which is written first if it is missing.

        Args:
            setting: method and parameters.
            split: scenes.
            kind: see `NEW_TOKENS`.
            progress: called with the number of prompts just answered.

        Raises:
            UnsupportedError: the method does not go with the model.
            ValueError: a value of the method does not fit the model, or nobody knows it.
        """
        methods = setting.build()
        images, prompts = split.prompts(kind)
        path = self._path(setting, methods, split, kind, prompts)
        if path.exists():
            progress(len(prompts))
            return Answers(**json.loads(path.read_text(encoding="utf-8"))["answers"])
        torch.manual_seed(split.seed)  # for controls that sample
        start = time.perf_counter()
        texts = vlmfix.generate(
            self.model,
            self.processor,
            images,
            prompts,
            methods,
            max_new_tokens=NEW_TOKENS[kind],
            batch_size=self.batch_size,
            progress=progress,
            do_sample=False,
        )
        seconds = time.perf_counter() - start
        stats = methods[-1].edit_stats() if methods else None
        prunes = stats is not None and isinstance(methods[-1], vlmfix.PrunesTokens)
        answers = Answers(
            texts,
            seconds,
            None if stats is None else stats.site_share,
            stats.size if stats is not None and prunes else None,
        )
        write_json(path, {"setting": asdict(setting), "answers": asdict(answers)})
        return answers

    def margins(self, split: Split) -> list[float]:
        """How much likelier greedy decoding begins with a yes than with a no, in nats, for each question."""
        images, prompts = split.prompts("yes-no")
        path = self._path(Setting("greedy", {}), [], split, "margins", prompts)
        if not path.exists():
            observer = _Margins(ids=answer_ids(self.processor.tokenizer))
            vlmfix.generate(
                self.model,
                self.processor,
                images,
                prompts,
                observer,
                max_new_tokens=1,
                batch_size=self.batch_size,
                do_sample=False,
            )
            write_json(path, observer.seen)
        seen: list[float] = json.loads(path.read_text(encoding="utf-8"))
        return seen

    def _path(
        self, setting: Setting, methods: list[vlmfix.Method], split: Split, kind: str, prompts: list[str]
    ) -> Path:
        """A file name with a hash of everything that changes an answer."""
        key = {
            "model": self.name,
            "method": setting.method,
            "parameters": methods[-1].parameters if methods else {},
            "seed": split.seed,
            "count": split.count,
            "prompts": prompts,
            "new tokens": NEW_TOKENS.get(kind, 1),
            "versions": versions(),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.folder / f"{setting.method}-{split.name}-{kind}-{digest}.json"


@dataclass(frozen=True, kw_only=True)
class _Margins(vlmfix.Method):
    """Looks at the first token of each answer."""

    edits: ClassVar = False

    ids: tuple[tuple[int, ...], tuple[int, ...]]
    seen: list[float] = field(default_factory=list, compare=False)

    def edit_logits(
        self, context: DecodeContext, logits: torch.Tensor, branches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if context.step == 0:
            self.seen.extend(answer_margins(logits, *self.ids).tolist())
        return logits


def versions() -> dict[str, str]:
    """Versions of what computes the answers."""
    return {
        "vlmfix": vlmfix.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_json(path: Path, content: Any) -> None:
    """Write a file that is either whole or absent, whenever the program is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(partial, path)
