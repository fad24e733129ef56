"""Self-tests: what the engine does for methods, against the stock model, in a prefill and decode steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, ProcessorMixin

from vlmfix.engine.attach import AttachmentBlock
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.phases import visual_tokens
from vlmfix.engine.tokens import end_tokens
from vlmfix.errors import UnsupportedError
from vlmfix.inference.decoding import plain_decoding
from vlmfix.methods.base import Method
from vlmfix.probe import identities

STEPS = 3
"""Tokens that are decoded: the first comes from the prompt, two from steps on its cache."""

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
_HALF = 3e-2
_BEAMS = 3


@dataclass(frozen=True)
class ProbeInputs:
    """What a model is asked in self-tests.

    Args:
        batch: inputs of prompts of different lengths, left-padded, with images.
        singles: the same prompts one by one, without padding.
        without_images: the same prompts without anything of their images, left-padded; None: not known.
        other_images: `batch` with other pixels.
    """

    batch: Mapping[str, Any]
    singles: Sequence[Mapping[str, Any]]
    without_images: Mapping[str, Any] | None
    other_images: Mapping[str, Any]


class SelfTest(NamedTuple):
    """The outcome of a self-test.

    Args:
        name: of the test.
        passed: whether it holds.
        difference: the largest one of logits, as a share of the largest logit; None: none was measured.
        reason: why it does not hold; "": it does.
        refused: whether the engine refuses on this model what it tests.
    """

    name: str
    passed: bool
    difference: float | None
    reason: str
    refused: bool = False


class Probe:
    """Runs of a model on probe inputs, in each of which the same tokens are said.

    Args:
        model: loaded.
        processor: of the model; None: methods that need it are refused.
        inputs: see `ProbeInputs`.

    Raises:
        ValueError: the stock model fails on them.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None, inputs: ProbeInputs) -> None:
        self.model, self.processor, self.inputs = model, processor, inputs
        self.tolerance = _TOLERANCES.get(model.dtype, _HALF)
        self._is_half = model.dtype not in _TOLERANCES
        self._answers = _answers(model, inputs.batch)
        try:
            self.stock = self.logits(inputs.batch)
        except Exception as error:  # whatever an unknown model does
            raise ValueError(
                f"{type(model).__name__} itself cannot answer a question about a picture: {_words(error)}"
            ) from error
        if self._is_half:  # a batch rounds in another order than its prompts do alone
            self.tolerance = max(_HALF, 3 * self.difference(self.singles(), self.stock))

    def singles(self, method: MethodHooks | None = None) -> Tensor:
        """`logits` of the prompts one by one."""
        rows = [self.logits(each, method, row=row)[:, 0] for row, each in enumerate(self.inputs.singles)]
        return torch.stack(rows, dim=1)

    def logits(
        self,
        inputs: Mapping[str, Any],
        method: MethodHooks | None = None,
        *,
        row: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Raw logits of each step, `(steps, batch, vocabulary)` float32.

        Args:
            method: under which; None: the stock model.
            row: whose answer is said; None: each prompt has its own.
        """
        answers = self._answers if row is None else self._answers[row : row + 1]
        options = plain_decoding(self.model, {"max_new_tokens": STEPS, **kwargs})
        with self._under(method):
            generate: Any = self.model.generate  # of GenerationMixin, unknown to the type of the model
            output = generate(
                **inputs,
                **options,
                logits_processor=[_Said(answers)],
                output_logits=True,
                return_dict_in_generate=True,
            )
        return torch.stack([each.float() for each in output.logits])

    def beams(self, method: MethodHooks | None = None) -> Tensor:
        """Scores of the sequences that a beam search finds, `(batch, beams)` float32.

        Args:
            method: under which; None: the stock model.
        """
        options = plain_decoding(self.model, {"max_new_tokens": STEPS, "num_beams": _BEAMS})
        with self._under(method):
            generate: Any = self.model.generate
            output = generate(
                **self.inputs.batch,
                **options,
                num_return_sequences=_BEAMS,
                output_scores=True,
                return_dict_in_generate=True,
            )
        scores: Tensor = output.sequences_scores.float().view(-1, _BEAMS)
        return scores

    def _under(self, method: MethodHooks | None) -> AbstractContextManager[None]:
        return nullcontext() if method is None else AttachmentBlock(self.model, method, self.processor)

    def answer(self, method: Method) -> Tensor | None:
        """Raw logits under a method in its own way of decoding, as `logits` has them; None: of a loop of its
        own, whose tokens are its choice."""
        if not isinstance(method, ChoosesTokens):
            return self.logits(self.inputs.batch, method)
        with AttachmentBlock(self.model, method, self.processor):
            generate: Any = self.model.generate
            generate(**self.inputs.batch, **method.decoding({"max_new_tokens": STEPS, "do_sample": False}))
        return None

    def difference(self, found: Tensor, expected: Tensor) -> float:
        """The largest difference of finite logits, as a share of the largest one."""
        finite = expected.isfinite()
        if not torch.equal(finite, found.isfinite()):
            return torch.inf
        scale = expected[finite].abs().max().clamp_min(1e-6)
        return float((found[finite] - expected[finite]).abs().max() / scale)


def self_tests(probe: Probe) -> list[SelfTest]:
    """All self-tests of a model, the general ones first."""
    inputs, same = probe.inputs, probe.stock

    def under(method: MethodHooks, **kwargs: Any) -> float:
        return probe.difference(probe.logits(inputs.batch, method, **kwargs), same)

    def singles(method: MethodHooks | None) -> float:
        expected = same if method is None else probe.logits(inputs.batch, method)
        return probe.difference(probe.singles(method), expected)

    def uncached() -> float:
        try:
            stock = probe.difference(probe.logits(inputs.batch, use_cache=False), same)
        except Exception as error:  # whatever the model does
            raise UnsupportedError(f"the stock model fails without a cache: {_words(error)}") from error
        if stock > probe.tolerance:
            raise UnsupportedError(f"without a cache the stock model gives other logits, by {stock:.1e}")
        return under(rows, use_cache=False)

    def beams(method: MethodHooks) -> float:
        try:
            stock = probe.beams()
        except Exception as error:  # whatever the model does
            raise UnsupportedError(f"the stock model fails with beams: {_words(error)}") from error
        return probe.difference(probe.beams(method), stock)

    def text() -> float:
        if inputs.without_images is None:
            raise UnsupportedError("what the prompt is without its images is not known")
        expected = probe.logits(inputs.without_images)
        return probe.difference(probe.logits(inputs.batch, identities.NoImage()), expected)

    rows = identities.ExplicitRows()
    tests: dict[str, Callable[[], float]] = {
        "stock model, batch as single prompts": partial(singles, None),
        "explicit rows": partial(under, rows),
        "explicit rows, single prompts": partial(singles, rows),
        "explicit rows, no cache": uncached,
        "explicit rows, beams": partial(beams, rows),
        "same prompt, beams": partial(beams, identities.SamePrompt()),
        "outputs of heads": partial(under, identities.Heads()),
        "same prompt": partial(under, identities.SamePrompt()),
        "same images": partial(under, identities.SameImages()),
        "no image": text,
        "pruning of nothing": partial(under, identities.PrunedOfNothing()),
        "second prompt": partial(under, identities.SecondPrompt()),
        "last row again": partial(under, identities.LastRowAgain()),
        "early exit": partial(under, identities.OwnExit()),
    }
    found = [_sees_images(probe)]
    for name, test in tests.items():
        found.append(_outcome(name, test, probe.tolerance))
    return found


def _sees_images(probe: Probe) -> SelfTest:
    """Without which all other tests would say nothing."""
    name = "other images change the logits"
    try:
        moved = probe.difference(probe.logits(probe.inputs.other_images), probe.stock)
    except Exception as error:
        return SelfTest(name, False, None, _words(error))
    passed = moved > probe.tolerance
    return SelfTest(name, passed, moved, "" if passed else "they do not: weights are missing, or it is blind")


def _outcome(name: str, test: Callable[[], float], tolerance: float) -> SelfTest:
    try:
        difference = test()
    except UnsupportedError as error:
        return SelfTest(name, False, None, str(error), refused=True)
    except Exception as error:  # whatever an unknown model does with what it is given
        return SelfTest(name, False, None, f"it fails: {_words(error)}")
    passed = difference <= tolerance
    reason = "" if passed else f"logits differ by {difference:.1e} of the largest one (at most {tolerance:g})"
    return SelfTest(name, passed, difference, reason)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _answers(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """What is said: words of each prompt, `(batch, steps)`, none of which stands for an image or ends it."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    visual, _ = visual_tokens(model, inputs, None)
    plain = mask & ~visual
    ends = end_tokens(model, {})
    if ends is not None:
        plain &= ~torch.isin(ids, ends.to(ids.device))
    answers: list[Tensor] = []
    for own, words in zip(ids, plain, strict=True):
        said = own[words][-1 - STEPS : -1]
        if not len(said):
            raise ValueError(
                f"the processor makes no words of a question: {own[mask[len(answers)]].tolist()}"
            )
        answers.append(said[torch.arange(STEPS, device=said.device) % len(said)])
    return torch.stack(answers)


class _Said(LogitsProcessor):
    """Lets an answer be said word by word, whatever the logits are."""

    def __init__(self, answers: Tensor) -> None:
        self._answers = answers
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = torch.full_like(scores, -torch.inf)
        said.scatter_(1, self._answers[:, self._step, None].to(scores.device), 0.0)
        self._step += 1
        return said
