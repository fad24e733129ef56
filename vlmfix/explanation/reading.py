"""An answer that a model reads again in one pass, and what that shows of each of its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import with_answer
from vlmfix.calibration.sinks import sink_threshold
from vlmfix.engine import compatibility, tokens
from vlmfix.engine.modules import input_device
from vlmfix.errors import UnsupportedError
from vlmfix.explanation.knockout import RULES, Knockout, windows
from vlmfix.explanation.observers import (
    AnswerObserver,
    HeadDivergence,
    HeadObserver,
    RolloutObserver,
    Seen,
    SinkRule,
    Stream,
)
from vlmfix.explanation.rollout import roll_out
from vlmfix.inference.batch import check_token_ids
from vlmfix.inference.chat import prepare
from vlmfix.methods.base import Method
from vlmfix.methods.image.maps import locate
from vlmfix.models.image_grid.grids import ImageTokens
from vlmfix.models.profiles import find_profile

BACKGROUND = "What is the background of this image, without the objects in it? Answer in a word or a phrase."
"""The prompt whose map the contrast takes away."""

_ROWS = 64  # of logits that are turned into probabilities at a time


def band_of(layers: int) -> range:
    """The layers at 25 to 50 % of the depth, whose attention shows objects best (arXiv 2411.17491)."""
    return range(layers // 4, max(layers // 4 + 1, math.ceil(layers / 2)))


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model says of the tokens of an answer.

    Args:
        log_p: log probability of each token in nats, `(tokens,)`.
        entropy: of the distribution that it comes from, likewise.
        margin: logit of the token less that of the best other one.
        log_probabilities: the distributions, `(tokens, vocabulary)` float32; None: not kept.
    """

    log_p: Tensor
    entropy: Tensor
    margin: Tensor
    log_probabilities: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, token_ids: Sequence[int], *, keep: bool = False) -> Scores:
        """Of logits `(tokens, vocabulary)`, in blocks, on the CPU."""
        parts = []
        ids = torch.tensor(token_ids, device=logits.device)
        for rows, own in zip(logits.split(_ROWS), ids.split(_ROWS), strict=True):
            distribution = rows.float().log_softmax(dim=-1)
            chosen = distribution.gather(1, own[:, None])
            others = distribution.scatter(1, own[:, None], -torch.inf).amax(dim=-1)
            entropy = torch.special.entr(distribution.exp()).sum(dim=-1)
            kept = distribution.cpu() if keep else None
            parts.append((chosen[:, 0].cpu(), entropy.cpu(), (chosen[:, 0] - others).cpu(), kept))
        log_p, entropies, margins, kepts = zip(*parts, strict=True)
        whole = torch.cat(kepts) if keep else None
        return cls(torch.cat(log_p), torch.cat(entropies), torch.cat(margins), whole)


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen while prompt and answer were read in one pass, by layer.

    Args:
        scores: of the tokens.
        seen: attention of the rows that predict them.
        streams: what enters the layers.
        rollout: to the image tokens, `(tokens, image tokens)`; None: no layer of the upper half attends.
    """

    scores: Scores
    seen: dict[int, Seen]
    streams: dict[int, Stream]
    rollout: Tensor | None


@dataclass(eq=False)
class Reader:
    """A model that reads a prompt about one picture, and answers to it, again and again.

    Args:
        model: a stock model.
        processor: its processor.
        picture: in RGB.
        prompt: what is asked.
        left_out: what cannot be seen in this model, with the reason, by the name of what it is.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    picture: Image.Image
    prompt: str
    left_out: dict[str, str] = field(default_factory=dict)
    inputs: Any = field(init=False, repr=False)
    located: ImageTokens = field(init=False)
    length: int = field(init=False)
    layers: int = field(init=False)

    def __post_init__(self) -> None:
        self.model = compatibility.stock_model(self.model)
        compatibility.check_model(self.model)
        if self.model.config.is_encoder_decoder:
            raise UnsupportedError(
                f"{type(self.model).__name__} is an encoder-decoder model, whose answers do not follow their "
                "prompts; use a decoder-only model"
            )
        inputs = prepare([[self.picture]], [self.prompt], self.processor)
        inputs.pop("labels", None)  # some processors make them, and models would then compute a loss
        check_token_ids(inputs["input_ids"], self.model)
        [self.located] = locate(self.model, self.processor, inputs, [self.picture])
        self.inputs = inputs.to(input_device(self.model), dtype=self.model.dtype)
        self.length = inputs["input_ids"].shape[1]
        self.layers = self.model.config.get_text_config().num_hidden_layers

    @property
    def cells(self) -> int:
        """Number of image tokens."""
        return self.located.count

    @property
    def first_layer(self) -> int:
        """Where the rollout begins."""
        return self.layers // 2

    @cached_property
    def band(self) -> range:
        """See `band_of`."""
        return band_of(self.layers)

    @cached_property
    def sink_rule(self) -> SinkRule:
        """What counts as a sink in this checkpoint, by its profile; without one, by all dimensions."""
        profile = find_profile(self.model)
        values = {} if profile is None else profile.values
        hidden = self.model.config.get_text_config().hidden_size
        threshold = values.get("sink_threshold", {}).get("value", sink_threshold(hidden))
        dimensions = values.get("sink_dimensions", {}).get("value")
        return SinkRule(float(threshold), None if dimensions is None else tuple(dimensions))

    def observe(self, token_ids: Sequence[int], *, keep: bool = False) -> Observed:
        """Read an answer in one pass, with all eyes open.

        Args:
            token_ids: of the answer.
            keep: whether the distributions are kept, too.
        """
        observer = AnswerObserver(sinks=self.sink_rule, prompt_length=self.length)
        rolling = RolloutObserver(prompt_length=self.length, first_layer=self.first_layer)
        logits = self.logits(token_ids, [observer, rolling])
        rows = torch.arange(len(token_ids)) + self.length - 1
        scores = Scores.of(logits, token_ids, keep=keep)
        return Observed(
            scores, observer.collected(), observer.streams, self._rolled(rolling, rows, token_ids)
        )

    def background(self) -> Tensor | None:
        """The rollout of the prompt about the background at its last row, `(image tokens,)`; None: see
        `Observed`."""
        asking = Reader(self.model, self.processor, self.picture, BACKGROUND)
        rolling = RolloutObserver(prompt_length=asking.length, first_layer=self.first_layer)
        asking.logits((), [rolling])
        found = asking._rolled(rolling, torch.tensor([asking.length - 1]), ())
        return None if found is None else found[0]

    def _rolled(self, rolling: RolloutObserver, rows: Tensor, token_ids: Sequence[int]) -> Tensor | None:
        """The rollout of some rows to the image tokens; None where no layer of the upper half attends."""
        if not rolling.merged:
            self.left_out["rollout"] = "no layer in the upper half of this model attends"
            return None
        return roll_out(rows, rolling.layers)[:, self._image_columns(token_ids)]

    def without_paths(
        self, token_ids: Sequence[int], rule: str, layers: frozenset[int] | None = None
    ) -> Tensor:
        """Log probabilities of the tokens without some attention paths, `(tokens,)`; see `knockout.RULES`.

        Raises:
            UnsupportedError: scores of this model are not edited.
        """
        method = Knockout(rule=rule, prompt_length=self.length, layers=layers)
        return Scores.of(self.logits(token_ids, [method]), token_ids).log_p

    def cuts(self, token_ids: Sequence[int]) -> dict[str, Tensor]:
        """The same for every rule, in all layers, by rule."""
        return {rule: self.without_paths(token_ids, rule) for rule in RULES}

    def sliding_cut(self, token_ids: Sequence[int], window: int) -> Tensor:
        """Log probabilities with the image cut from all text in a window of layers, `(windows, tokens)`."""
        return torch.stack(
            [self.without_paths(token_ids, "image_to_all_text", own) for own in windows(self.layers, window)]
        )

    def head_divergence(self) -> Tensor:
        """How far the image moves each head at the last prompt row, `(layers, heads)`; NaN in layers that do
        not attend.

        Raises:
            UnsupportedError: the model does not read a second prompt beside the first.
        """
        method = HeadDivergence(num_last_layers=self.layers)
        self.logits((), [method])
        heads = self.model.config.get_text_config().num_attention_heads
        return torch.stack(
            [method.found.get(layer, torch.full((heads,), torch.nan)) for layer in range(self.layers)]
        )

    def heads_at(self, token_ids: Sequence[int], words: Sequence[Sequence[int]]) -> list[Tensor]:
        """Attention of each head to the image in the rows that predict the tokens of words, in one pass.

        Returns:
            For each word the mean of its rows, `(layers, heads, image tokens)`; layers that do not attend are
            left out.
        """
        places = sorted({place for word in words for place in word})
        method = HeadObserver(places=tuple(places), prompt_length=self.length)
        self.logits(token_ids[: places[-1] + 1], [method])
        seen = [method.seen[layer] for layer in sorted(method.seen)]
        rows = [[places.index(place) for place in word] for word in words]
        return [torch.stack([each[:, own].mean(dim=1) for each in seen]) for own in rows]

    def or_reason(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; None, with the reason in `left_out`, where the model does not allow it."""
        try:
            return work()
        except UnsupportedError as error:
            self.left_out[name] = str(error)
            return None

    def logits(self, token_ids: Sequence[int], methods: Sequence[Method]) -> Tensor:
        """Logits that predict the tokens of an answer, `(tokens, vocabulary)`, under methods; of none, those
        after the prompt."""
        model: Any = self.model
        inputs = with_answer(self.inputs, token_ids) if token_ids else self.inputs
        count = len(token_ids) + 1
        with torch.no_grad(), ExitStack() as stack:
            for method in methods:
                stack.enter_context(method(self.model, self.processor))
            found: Tensor = model(**inputs, logits_to_keep=count, use_cache=False).logits[0, -count:]
        return found[:-1] if token_ids else found

    def _image_columns(self, token_ids: Sequence[int]) -> Tensor:
        image = self.inputs["input_ids"][0] == tokens.image_token(self.model.config)
        return torch.cat([image.cpu(), torch.zeros(len(token_ids), dtype=torch.bool)])
