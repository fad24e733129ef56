"""Branches of contrastive methods against the same prompts read alone, in full, at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, PreTrainedModel

from tests.support import families
from tests.support.full_matrices import full_matrices
from tests.support.names import UNLIKE
from vlmfix.methods.logits.base import Contrastive

Inputs = dict[str, Tensor]

Alone = Callable[[Inputs, list[int]], list[Tensor]]
"""From a prompt without padding and the tokens of its answer so far, the logits of each branch, computed
without a method, a batch or a cache."""

Choose = Callable[[int, Tensor], set[int]]
"""From a step and the head-mean weights of its newest token over all tokens up to it, those that are seen."""

WAYS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"num_beams": 4}, True),
    ({"num_beams": 4}, False),
    ({"num_beams": 4, "use_cache": False}, True),
]
"""Ways of decoding, and whether branches are fused with the prompts."""
WAY_NAMES = ["greedy", "beams", "beams, not fused", "beams, no cache"]

GREEDY = (*UNLIKE, "llava_next", "qwen3_vl")

in_every_way = pytest.mark.parametrize(
    ("family", "way", "fused"),
    [
        pytest.param(family, way, fused, id=f"{family}-{name}")
        for number, ((way, fused), name) in enumerate(zip(WAYS, WAY_NAMES, strict=True))
        for family in ([UNLIKE[number % 2]] if way else GREEDY)
    ],
)
"""Greedily on a family of each form of pictures and positions, in the other ways on those that are unlike in
turn."""

in_some_ways = pytest.mark.parametrize(
    ("family", "way", "fused"),
    [
        pytest.param(UNLIKE[0], *WAYS[2], id=f"{UNLIKE[0]}-{WAY_NAMES[2]}"),
        pytest.param(UNLIKE[1], *WAYS[1], id=f"{UNLIKE[1]}-{WAY_NAMES[1]}"),
        pytest.param("qwen3_vl", *WAYS[0], id=f"qwen3_vl-{WAY_NAMES[0]}"),
    ],
)
"""Ways that have most in them, for methods whose branches are read as those of others are."""


def images_of(family: str, way: dict[str, Any]) -> tuple[int, int]:
    """Numbers of images of two prompts; old versions mix up the images of beams where they are several."""
    is_right = family.startswith("qwen") or hasattr(GenerationMixin, "_expand_multimodal_outputs")
    return (1, 2) if is_right or "num_beams" not in way else (1, 1)


class _Tokens(LogitsProcessor):
    """Notes what each row has said before every step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(input_ids.clone())
        return scores


def check_branches(
    model: PreTrainedModel,
    family: str,
    method: Contrastive,
    inputs: Inputs,
    alone: Alone,
    *,
    steps: int = 4,
    **generate_kwargs: Any,
) -> None:
    """Generate under a method, and compare its branches and the prompts with what they are alone."""
    seen: list[list[Tensor]] = []

    class Watched(type(method)):  # type: ignore[misc]
        def combine(self, context: Any, logits: Tensor, branches: Any) -> Tensor:
            seen.append([each.clone() for each in (logits, *branches)])
            return super().combine(context, logits, branches)

    tokens = _Tokens()
    with Watched(**method.parameters)(model, families.PROCESSOR):
        model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            logits_processor=[tokens],
            **generate_kwargs,
        )
    prompt = inputs["input_ids"].shape[1]
    singles = families.split(family, model, inputs)
    known: dict[tuple[int, ...], list[Tensor]] = {}
    for ids, logits in zip(tokens.steps, seen, strict=True):
        for row in range(len(ids)):
            sample = row // (len(ids) // len(singles))
            new = ids[row, prompt:].tolist()
            if (sample, *new) not in known:
                own = last_logits(model, answered(singles[sample], new))
                known[sample, *new] = [own, *alone(singles[sample], new)]
            expected = known[sample, *new]
            assert len(logits) == len(expected)
            for found, other in zip(logits, expected, strict=True):
                torch.testing.assert_close(found[row], other, atol=1e-4, rtol=1e-4)
    assert len(tokens.steps) == steps
    if generate_kwargs.get("num_beams"):  # or no beam ever took the place of another
        pairs = zip(tokens.steps, tokens.steps[1:], strict=False)
        assert any(not torch.equal(after[:, :-1], before) for before, after in pairs)


def answered(single: Inputs, new: list[int]) -> Inputs:
    """A prompt and its answer so far, as one prompt."""
    return with_ids(single, [*single["input_ids"][0].tolist(), *new])


def with_ids(single: Inputs, ids: list[int]) -> Inputs:
    """A prompt of other tokens, with as many image tokens."""
    whole = {**single, "input_ids": torch.tensor([ids])}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in single:
        types = families.token_types(whole["input_ids"])
        # A random model may answer with a placeholder, which stands for no video.
        whole["mm_token_type_ids"] = types if "video_grid_thw" in single else types % 2
    return whole


def last_logits(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    """Of the stock model, `(vocabulary,)`."""
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[0, -1].float()


def text_logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Of the text decoder alone, `(vocabulary,)`."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(torch.tensor([ids]))
        states = model.get_decoder()(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return model.get_output_embeddings()(states[0, -1]).float()


def text_ids(model: PreTrainedModel, single: Inputs, instead: int | None = None) -> list[int]:
    """A prompt of this test suite without its images, their begin and their end.

    Args:
        instead: what is put in the place of each image.
    """
    begin, end = families.VISION_START, families.VISION_END
    ids: list[int] = []
    before = None
    for token in single["input_ids"][0].tolist():
        if token == families.IMAGE_TOKEN:
            if before != families.IMAGE_TOKEN and instead is not None:
                ids.append(instead)
        elif token not in (begin, end):
            ids.append(token)
        before = token
    return ids


def selected_logits(
    model: PreTrainedModel, prompt: int, layer: int, choose: Choose, read: Callable[[], Tensor]
) -> Tensor:
    """What a model says that sees only chosen tokens from a layer on, token by token.

    Args:
        prompt: number of tokens of the prompt.
        layer: the first that sees only these.
        choose: which.
        read: reads the prompt and the answer so far.
    """
    chosen: dict[int, set[int]] = {}

    def edit(index: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        step = max(0, position - prompt + 1)
        if index == layer - 1 and position >= prompt - 1:
            chosen[step] = choose(step, scores.softmax(dim=-1).mean(dim=0)[: position + 1])
        if index < layer:
            return None
        visible = chosen[step] & set(range(position + 1)) or {position}
        for key in set(range(scores.shape[1])) - visible:
            scores[:, key] = -torch.inf
        return scores.softmax(dim=-1)

    with full_matrices(model, edit):
        return read()


def least(weights: Tensor, among: list[int], count: int) -> set[int]:
    """The tokens of the smallest weights, by sorting a list."""
    return set(sorted(among, key=lambda token: float(weights[token]))[:count])
