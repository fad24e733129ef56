"""A model of lmms-eval: `lmms-eval --model vlmfix --model_args pretrained=MODEL,method=var`."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

# Where a task says nothing, as in the models of lmms-eval itself.
_MAX_NEW_TOKENS = 1024
_KNOWN = {"max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample", "until"}
# Of other models: how they cut pictures up.
_IGNORED = {"image_aspect_ratio"}


def manifest() -> ModelManifest:
    """What lmms-eval reads by the entry point."""
    return ModelManifest("vlmfix", chat_class_path=f"{__name__}.{VlmfixModel.__name__}")


class VlmfixModel(lmms):  # type: ignore[misc]  # a class of lmms-eval, which has no types
    """A model under a method.

    Args:
        pretrained: embedded model, folder or hub id.
        method: by name, `a+b`, "greedy", or "auto" for the recipe of the checkpoint.
        set: parameters, `METHOD.KEY=VALUE`, several separated by semicolons.
        recipe: file or name of a recipe, in the place of a method.
        batch_size: prompts per forward pass; `--batch_size` sets it.
        device: "cpu", "cuda", ..., or "auto".
        dtype: "float32", "bfloat16", "float16", or "auto".
        revision: branch, tag or commit of a hub id.
        max_batch_size: without effect; lmms-eval passes it.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny-llava",
        method: str = "greedy",
        set: str = "",
        recipe: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        from vlmfix.adapters.hosted import HostedModel  # not for those who run other models

        super().__init__()
        self._rank = int(os.environ.get("RANK", 0))
        self._world_size = int(os.environ.get("WORLD_SIZE", 1))
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be a whole number from 1 on")
        self.batch_size = int(batch_size)
        self._hosted = HostedModel(
            str(pretrained),
            method=str(method),
            settings=str(set),
            recipe=recipe,
            device=device or "auto",
            dtype=dtype,
            revision=None if revision is None else str(revision),
        )

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests; those that are decoded alike go into batches.

        Raises:
            ValueError: a task asks for what vlmfix does not do; the message names it.
        """
        from vlmfix.cli.console import progress_bar
        from vlmfix.inference.sampling import seed_of

        alike: dict[Any, list[int]] = defaultdict(list)
        seeds, seen = [], Counter[Any]()
        for number, request in enumerate(requests):
            _, _, kwargs, doc_id, task, split = request.args
            alike[_decoding(kwargs, task)].append(number)
            repeat = seen[task, split, doc_id]
            seen[task, split, doc_id] += 1
            seeds.append(seed_of(torch.initial_seed(), f"{task}/{split}/{doc_id}", repeat))
        found: dict[int, GenerationResult] = {}
        with progress_bar("answering", len(requests), quiet=self.rank != 0) as advance:
            for decoding, numbers in alike.items():
                for start in range(0, len(numbers), self.batch_size):
                    batch = numbers[start : start + self.batch_size]
                    asked = [self._conversation(requests[number]) for number in batch]
                    answers = self._hosted.answers(asked, decoding, [seeds[number] for number in batch])
                    for number, answer in zip(batch, answers, strict=True):
                        counts = TokenCounts(
                            input_tokens=answer.prompt_tokens or None,
                            output_tokens=len(answer.token_ids) or None,
                            reasoning_tokens=answer.reasoning_tokens or None,
                        )
                        found[number] = GenerationResult(answer.text, counts)
                        context, _, kwargs, *_ = requests[number].args
                        self.cache_hook.add_partial("generate_until", (context, kwargs), answer.text)
                    advance(len(batch))
        return [found[number] for number in range(len(requests))]

    def _conversation(self, request: Instance) -> Any:
        """What a request asks.

        Raises:
            ValueError: it holds sound, or a video file.
        """
        from vlmfix.inference.conversation import read_messages

        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        try:
            return read_messages([{**each, "content": _content(each["content"])} for each in messages])
        except ValueError as error:
            raise ValueError(f"document {doc_id} of {task}: {error}") from error

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refused: methods act on what is generated."""
        raise NotImplementedError(
            "vlmfix answers tasks of the type generate_until, and gives no loglikelihood; choose another task"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refused: a round depends on the answer before it."""
        raise NotImplementedError(
            "vlmfix answers tasks of the type generate_until, and none of several rounds; choose another task"
        )


def _decoding(kwargs: Mapping[str, Any], task: str) -> Any:
    """How a task wants its answers decoded.

    Raises:
        ValueError: in a way that is not known here.
    """
    from vlmfix.adapters.hosted import Decoding

    unknown = sorted(kwargs.keys() - _KNOWN - _IGNORED)
    if unknown:
        raise ValueError(
            f"{task} sets {', '.join(unknown)} in generation_kwargs, which vlmfix does not know; it knows "
            f"{', '.join(sorted(_KNOWN))}"
        )
    given = {name: value for name, value in kwargs.items() if value is not None}
    until = given.get("until", [])
    temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
    samples = given.get("do_sample", True) and temperature > 0
    return Decoding(
        given.get("max_new_tokens", _MAX_NEW_TOKENS),
        temperature if samples else 0.0,
        float(given.get("top_p", 1.0)),
        int(given.get("top_k", 0)),
        int(given.get("num_beams", 1)),
        (until,) if isinstance(until, str) else tuple(until),
    )


def _content(content: Any) -> Any:
    """The items of a message in the form of `apply_chat_template`."""
    if isinstance(content, str):
        return content
    return [
        {"type": each["type"], each["type"]: each["url"]} if "url" in each else dict(each) for each in content
    ]
