"""Control: an offset between yes and no, which has a method's answer balance and no mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.logits.base import rule_out
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import (
    check_choice,
    check_range,
    check_token_ids,
    sequence,
)
from vlmfix.models.profiles import Profile

_WORDS = (("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no"))


@register_method("baseline.output_shift")
@dataclass(frozen=True, kw_only=True)
class BaselineOutputShift(Method):
    """Yes against no by a fixed offset (arXiv 2504.10020): the gain of saying yes more, or less, often.

    Args:
        form: "shift" adds half of `delta` to the logits that begin a yes and takes half of it from those that
            begin a no, at every step; "band" forces yes wherever the model leans to neither (as published).
        delta: of "shift", in [-1000, 1000]; 0 leaves the model as it is.
        mass: of "band": yes and no together must be likelier than this, in [0, 1].
        margin: of "band": their probabilities must differ by less, in [0, 1].
        yes_ids: token ids that begin a yes; None: the words for it that are single tokens of the tokenizer.
        no_ids: the same for no.
    """

    form: str = "shift"
    delta: float = 1.0
    mass: float = 0.2
    margin: float = 0.5
    yes_ids: tuple[int, ...] | None = None
    no_ids: tuple[int, ...] | None = None

    needs_image: ClassVar = False
    keeps_prefix: ClassVar = True
    follows_logits: ClassVar = True
    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="logits: yes raised against no",
        where="every step",
        forwards=1.0,
        provenance="paper",
        paper="2504.10020",
        decoding="greedy, sampling, beams, batches, with the processor",
    )
    identity_parameters: ClassVar = {"form": "shift", "delta": 0}

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("shift", "band"))
        check_range("delta", self.delta, -1000, 1000)
        check_range("mass", self.mass, 0, 1)
        check_range("margin", self.margin, 0, 1)
        for name in ("yes_ids", "no_ids"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        both = set(self.yes_ids or ()) & set(self.no_ids or ())
        if both:
            raise ValueError(f"yes_ids and no_ids share {sorted(both)}; a token begins one of them")

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        for name in ("yes_ids", "no_ids"):
            check_token_ids(name, getattr(self, name), config.get_text_config().vocab_size)
        return self

    @property
    def needs_processor(self) -> bool:
        return self.yes_ids is None or self.no_ids is None

    def begin(self, context: DecodeContext) -> None:
        ids = (self.yes_ids, self.no_ids)
        if self.needs_processor:
            found = answer_ids(context.processor.tokenizer)
            ids = (self.yes_ids or found[0], self.no_ids or found[1])
        device = context.layout.image_tokens.device
        context.state[self, "ids"] = tuple(torch.tensor([each], device=device) for each in ids)

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        yes, no = (each[0].to(logits.device) for each in context.state[self, "ids"])
        if self.form == "shift":
            return shifted(logits, yes, no, self.delta)
        return forced(logits, yes, no, mass=self.mass, margin=self.margin)

    def inactive_reason(self, context: DecodeContext) -> str:
        return "the model never wavered between yes and no; widen `mass` and `margin`"


def shifted(logits: Tensor, yes: Tensor, no: Tensor, delta: float) -> Tensor:
    """Logits with an offset of `delta` between yes and no.

    Args:
        logits: `(batch, vocabulary)`.
        yes: ids that begin a yes, `(ids,)` int64.
        no: the same for no.
        delta: how much the margin between them grows.
    """
    edited = logits.clone()
    edited[:, yes] += delta / 2
    edited[:, no] -= delta / 2
    return edited


def forced(logits: Tensor, yes: Tensor, no: Tensor, *, mass: float, margin: float) -> Tensor:
    """Logits that leave only the likeliest yes where the model leans to neither answer (arXiv 2504.10020).

    Args:
        logits: `(batch, vocabulary)`.
        yes: ids that begin a yes, `(ids,)` int64.
        no: the same for no.
        mass: probability that yes and no together must exceed.
        margin: by which their probabilities must differ at most.
    """
    shares = logits.softmax(dim=-1)
    says_yes, says_no = shares[:, yes].sum(dim=-1), shares[:, no].sum(dim=-1)
    wavers = (says_yes + says_no > mass) & ((says_yes - says_no).abs() < margin)
    likeliest = yes[logits[:, yes].argmax(dim=-1)][:, None]
    only = torch.zeros_like(logits, dtype=torch.bool).scatter(1, likeliest, True)
    return torch.where(wavers[:, None], rule_out(logits, logits, only), logits)


def answer_margins(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> Tensor:
    """How much a next token that says yes is likelier than one that says no, in nats, `(batch,)`.

    Args:
        logits: `(batch, vocabulary)`.
        yes: ids that begin a yes.
        no: the same for no.
    """
    chosen = logits.float()
    return chosen[:, list(yes)].logsumexp(dim=-1) - chosen[:, list(no)].logsumexp(dim=-1)


def calibrate_shift(margins: Sequence[float], target: float) -> float:
    """The `delta` with which a share of one-token answers says yes.

    Args:
        margins: of the first step of each item without an edit, see `answer_margins`; one at least.
        target: the share, in [0, 1].

    Raises:
        ValueError: no margins, or a share out of its range.
    """
    check_range("target", target, 0, 1)
    if not margins:
        raise ValueError("margins is empty; there must be one at least")
    falling = sorted(margins, reverse=True)
    count = round(target * len(falling))
    if count == 0:
        return -falling[0] - 1
    if count == len(falling):
        return -falling[-1] + 1
    return -(falling[count - 1] + falling[count]) / 2


def answer_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the tokens that begin a yes, and of those that begin a no.

    Args:
        tokenizer: of the model.

    Raises:
        UnsupportedError: no word for yes, or none for no, is a single token.
    """
    found = []
    for words in _WORDS:
        encoded = [(word, tokenizer.encode(word, add_special_tokens=False)) for word in words]
        single = {
            ids[0] for word, ids in encoded if len(ids) == 1 and tokenizer.decode(ids).strip() == word.strip()
        }
        if not single:
            raise UnsupportedError(
                f"no single token of {type(tokenizer).__name__} says {words[1]}; pass yes_ids and no_ids, in "
                "an evaluation leave the baselines out (--no-baselines)"
            )
        found.append(tuple(sorted(single)))
    return found[0], found[1]


def _token_ids(name: str, values: Any) -> tuple[int, ...]:
    """Token ids, sorted.

    Raises:
        ValueError: they are something else, or there is none.
    """
    several = sequence(name, [values] if isinstance(values, int) else values, "token ids, 0 or more")
    if not several or any(type(value) is not int or value < 0 for value in several):
        raise ValueError(f"{name} is {values!r}; it must hold token ids, 0 or more")
    return tuple(sorted(set(several)))
