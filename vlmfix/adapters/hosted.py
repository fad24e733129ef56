"""A model under a method as harnesses ask it: conversations in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import LogitsProcessorList

import vlmfix
from vlmfix.api import decoding_under
from vlmfix.cli.jobs import device_of
from vlmfix.cli.loading import load_model
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.output import Answer
from vlmfix.inference.sampling import SeededSampling
from vlmfix.methods.grammar import make_methods, parse_settings
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.methods.registry import AUTO, GREEDY
from vlmfix.methods.validation import check_temperature
from vlmfix.recipes import Recipe, find_recipe, load_recipe


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded; whatever else the checkpoint says of it does not apply.

    Args:
        max_new_tokens: length limit.
        temperature: 0 is greedy.
        top_p: share of probability that is kept, in (0, 1].
        top_k: tokens that are kept; 0 keeps all.
        num_beams: of greedy decoding.
        stop: texts before which an answer is cut.

    Raises:
        ValueError: a value is out of its range, or beams shall sample.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("num_beams", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from {least} on")
        if self.temperature and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}; it must be above 0 and at most 1")
        if self.temperature and self.num_beams > 1:
            raise ValueError(f"{self.num_beams} beams do not sample; set num_beams=1, or temperature=0")

    def generate_kwargs(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Arguments of `model.generate`, with a seed for each answer."""
        kwargs: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        if self.num_beams > 1:
            kwargs["num_beams"] = self.num_beams
        if self.temperature:
            draws = SeededSampling(seeds, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
            kwargs["logits_processor"] = LogitsProcessorList([draws])
        return kwargs


class HostedModel:
    """A model under a method.

    Args:
        name: embedded model, folder or hub id.
        method: by name, `a+b`, "greedy", or "auto" for the recipe of the checkpoint.
        settings: of the methods, `METHOD.KEY=VALUE`, several separated by semicolons.
        recipe: file or name of a recipe, in the place of a method.
        device: "cpu", "cuda", ..., or "auto"; of several processes of a launcher, each takes its own GPU.
        dtype: "float32", "bfloat16", "float16", or "auto".
        revision: branch, tag or commit of a hub id.

    Raises:
        FileNotFoundError: there is no such model or recipe.
        ValueError: an unknown method, a value out of its range, or a recipe of another checkpoint.
    """

    def __init__(
        self,
        name: str,
        *,
        method: str = GREEDY,
        settings: str = "",
        recipe: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> None:
        if recipe is not None and (method != GREEDY or settings):
            raise ValueError(
                f"recipe {recipe} has methods and parameters of its own; leave method and set out"
            )
        chosen = [each.strip() for each in settings.split(";") if each.strip()]
        self.method: Any = None
        if recipe is not None:
            self.method = load_recipe(recipe)
        elif method != AUTO or chosen:  # with parameters it is refused as on the command line
            [parsed] = parse_settings([method], chosen)
            self.method = make_methods(parsed)
        own_device = device_of(device, Shard.from_environment(arrays=False))
        self.model, self.processor = load_model(name, own_device, dtype, revision=revision)
        if self.method is None:
            self.method = find_recipe(self.model)
        is_recipe = isinstance(self.method, Recipe)
        methods = self.method.make_methods() if is_recipe else self.method
        self._beams = decoding_under(methods, self.method.decoding if is_recipe else {}).get("num_beams", 1)
        self._alone = any(isinstance(each, MultiPassMethod) for each in methods)

    def answers(
        self, asked: Sequence[Conversation], decoding: Decoding, seeds: Sequence[int]
    ) -> list[Answer]:
        """Answer conversations in one batch.

        Args:
            asked: in any order.
            decoding: of all of them.
            seeds: of each one, 0 or more; without effect where nothing is sampled.

        Returns:
            The answers, cut before the first text that stops them; that counts as their end.

        Raises:
            ValueError: a conversation cannot be read, or beams shall sample.
            UnsupportedError: the model or the decoding does not go with the method.
        """
        if decoding.temperature and self._beams > 1:
            raise ValueError(
                f"the method decodes with {self._beams} beams, and they do not sample; set temperature=0"
            )
        if self._alone and len(asked) > 1:
            return [
                self.answers([each], decoding, [seed])[0] for each, seed in zip(asked, seeds, strict=True)
            ]
        found: list[Answer] = []
        vlmfix.generate(
            self.model,
            self.processor,
            messages=list(asked),
            method=self.method,
            batch_size=max(1, len(asked)),
            on_answer=found.append,
            **decoding.generate_kwargs(seeds),
        )
        return [_cut(answer, decoding.stop) for answer in found]


def _cut(answer: Answer, stop: Sequence[str]) -> Answer:
    places = [place for text in stop if text and (place := answer.text.find(text)) >= 0]
    return replace(answer, text=answer.text[: min(places)], ended=True) if places else answer
