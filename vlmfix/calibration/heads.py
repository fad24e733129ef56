"""Finding the heads that make a model name objects that are not there, for AD-HH."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.caption_rows import CaptionRows
from vlmfix.calibration.head_statistics import (
    Head,
    choose_count,
    contrast,
    head_mask,
    random_set_p,
    random_sets,
    ranking,
    resampled_differences,
    shares_in_best,
)
from vlmfix.calibration.results import (
    PROMPT,
    Calibration,
    Progress,
    prompt_inputs,
)
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.chat import text_and_spans
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.pictures import ImageLike

READS = 3
"""How often each picture is read."""

_CAPTION = {"max_new_tokens": 128}
_BATCH = 8

# Numbers of heads to choose from, up to a tenth of all.
_COUNTS = (0, 1, 2, 5, 10, 20, 40, 80)

# Silenced one by one: four times the published share of the heads, which is 20 of 1024.
_CANDIDATES = 4 * 20 / 1024

# Object tokens on which the estimate is compared with every head silenced.
_COMPARED = 20

_RANDOM_SETS = 20
_MAX_CORRECT_DROP = 0.05

# Fewer hallucinated objects, or a larger p, are worth a warning.
_FIRM = 50
_CHANCE = 0.05


class ObjectWord(NamedTuple):
    """An object that a caption names.

    Args:
        start: place of the first character of the word in the caption.
        hallucinated: whether the object is not in the picture.
    """

    start: int
    hallucinated: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture whose captions can be judged.

    Args:
        image: the picture, or its path.
        judge: finds the objects that a caption of it names.
    """

    image: ImageLike
    judge: Callable[[str], Sequence[ObjectWord]]


def calibrate_heads(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[AnnotatedImage],
    progress: Progress,
) -> Calibration:
    """Find the hallucination heads for AD-HH (github.com/TianyunYoung/Hallucination-Attribution, ICLR 2025).

    The model captions each picture. A head has as large an effect on an object that it names as the
    probability of the word's first token falls without the head. The heads with the largest mean effect on
    hallucinated objects, less that on correct ones, are listed.

    This library's own: a silenced head gives zeros in the row that predicts the token, and nowhere else. On
    one half of the pictures, heads are ranked by a first-order estimate of their effects (arXiv 1905.10650),
    and the best of them again by silencing one at a time. On the other half the best are silenced together,
    which says how many to list, and so are random heads of the same layers, which the list has to beat.

    Args:
        model: a stock model.
        processor: its processor.
        images: 100 or more.
        progress: called with the number of pictures just read; each is read `READS` times.

    Returns:
        The list, and in the findings what it does on the pictures that it was not found on.

    Raises:
        ValueError: the pictures are not annotated, the captions name too few hallucinated or correct objects,
            or no heads have a larger effect on hallucinated objects than on correct ones.
    """
    if not all(isinstance(each, AnnotatedImage) for each in images):
        raise ValueError(
            "adhh is calibrated on captions that can be judged; give AnnotatedImage objects (on the command "
            "line a COCO folder with instances, as 'vlmfix scenes' writes)"
        )
    reader = _Reader(model, processor, progress)
    captions = reader.captions(images)
    wrong = sum(sum(each.hallucinated) for each in captions)
    right = sum(len(each.hallucinated) for each in captions) - wrong
    captions.sort(key=lambda each: -sum(each.hallucinated))  # each half gets as many hallucinated objects
    halves = _Captions(captions[::2]), _Captions(captions[1::2])
    if not all(half.has_both for half in halves):
        raise ValueError(
            f"{len(images)} captions name {wrong} hallucinated and {right} correct objects, but both kinds "
            "are needed in each half of the pictures; give more pictures, or such as the model gets wrong"
        )
    if wrong < _FIRM:
        warnings.warn(
            f"the captions name {wrong} hallucinated objects; rankings are firm from about {_FIRM} on, so "
            "give more pictures",
            stacklevel=2,
        )
    ranked = _rank(reader, *halves)
    kept, of_list = _choose(reader, halves[1], ranked.order)
    heads, gain = ranked.order[:kept], of_list["gain on held-out pictures"]
    return Calibration(
        {"adhh_heads": [list(head) for head in heads]},
        f"{len(images)} captions with {wrong} hallucinated and {right} correct objects: heads whose silence "
        "lowers the probability of hallucinated objects the most, compared with that of correct ones "
        f"(by {gain} together on held-out pictures)",
        {"hallucinated object tokens": wrong, "correct object tokens": right}
        | of_list
        | ranked.findings(kept),
    )


class _Caption(NamedTuple):
    """A caption that names objects.

    Args:
        image: what it is of.
        token_ids: of the caption.
        places: of the first token of each object's word.
        hallucinated: which of the objects are not there.
    """

    image: ImageLike
    token_ids: tuple[int, ...]
    places: list[int]
    hallucinated: list[bool]


@dataclass(frozen=True)
class _Captions:
    """Captions, and their object tokens in one row."""

    captions: Sequence[_Caption]

    @cached_property
    def hallucinated(self) -> Tensor:
        """Which objects are not there, `(tokens,)` bool."""
        return torch.tensor([each for caption in self.captions for each in caption.hallucinated]).bool()

    @cached_property
    def images(self) -> Tensor:
        """Number of the caption of each token, `(tokens,)` int64."""
        return torch.arange(len(self.captions)).repeat_interleave(
            torch.tensor([len(each.places) for each in self.captions])
        )

    @property
    def has_both(self) -> bool:
        """Whether there are hallucinated and correct objects."""
        return 0 < int(self.hallucinated.sum()) < len(self.hallucinated)

    def first(self, tokens: int) -> _Captions:
        """As many captions as have so many tokens, and objects of both kinds."""
        prefixes = (_Captions(self.captions[:count]) for count in range(1, len(self.captions)))
        return next((each for each in prefixes if each.has_both and len(each.hallucinated) >= tokens), self)


class _Reader:
    """A model at work on captions.

    Args:
        model: a stock model.
        processor: its processor.
        progress: called with the number of pictures just read.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, progress: Progress) -> None:
        self._model, self._processor = model, processor
        self._progress = progress or (lambda count: None)
        config = model.config.get_text_config()
        self.shape: Head = config.num_hidden_layers, config.num_attention_heads
        self.heads: list[Head] = list(itertools.product(*map(range, self.shape)))

    def captions(self, images: Sequence[AnnotatedImage]) -> list[_Caption]:
        """Greedy captions that name objects."""
        found = []
        decoding = plain_decoding(self._model, _CAPTION)
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            prompts = [(each.image, PROMPT) for each in batch]
            answers = answer_batch(self._model, self._processor, prompts, **decoding)
            for each, answer in zip(batch, answers, strict=True):
                text, spans = text_and_spans(answer.token_ids, self._processor, skip_special_tokens=True)
                words = each.judge(text)
                places = [
                    next(place for place, (_, end) in enumerate(spans) if end > word.start) for word in words
                ]
                if words:
                    wrong = [word.hallucinated for word in words]
                    found.append(_Caption(each.image, answer.token_ids, places, wrong))
                self._progress(1 if words else READS)
        return found

    def estimates(self, captions: _Captions) -> tuple[Tensor, Tensor]:
        """First-order effects of each head `(tokens, heads)`, and probabilities `(tokens,)`."""
        found = []
        for caption in captions.captions:
            found.append(self._rows(caption).first_order(caption.places))
            self._progress(1)
        effects, probabilities = zip(*found, strict=True)
        return torch.cat(effects).flatten(1), torch.cat(probabilities)

    def exact(self, captions: _Captions, lists: Tensor, *, counts: bool = True) -> Tensor:
        """Effects of lists of heads, `(lists, layers, heads)` bool, on the tokens, `(tokens, lists)`."""
        found = []
        for caption in captions.captions:
            found.append(self._rows(caption).exact(caption.places, lists))
            self._progress(int(counts))
        return torch.cat(found)

    def each_alone(self, heads: Sequence[Head]) -> Tensor:
        """Lists of one head, `(heads, layers, heads)` bool."""
        return head_mask([[head] for head in heads], self.shape)

    def _rows(self, caption: _Caption) -> CaptionRows:
        inputs = prompt_inputs(self._model, self._processor, caption.image, PROMPT)
        return CaptionRows(self._model, inputs, caption.token_ids)


@dataclass(frozen=True)
class _Ranked:
    """Heads by their effects.

    Args:
        order: of all heads; the candidates, as silencing one by one ranks them, come first.
        estimated: the order by the estimate.
        elsewhere: the order by the estimate on the other half of the pictures.
        exact: effects of the candidates in the order of the estimate, `(tokens, candidates)`.
        captions: on which the heads were ranked.
        rank_correlations: of the mean differences, by what is compared.
        saturated: share of the object tokens with a probability above 0.99, whose effects vanish.
    """

    order: list[Head]
    estimated: list[Head]
    elsewhere: list[Head]
    exact: Tensor
    captions: _Captions
    rank_correlations: dict[str, float]
    saturated: float

    def findings(self, kept: int) -> dict[str, Any]:
        """What supports the order and its first heads, for people."""
        effects = contrast(self.exact, self.captions.hallucinated)
        resampled = resampled_differences(self.exact, self.captions.hallucinated, self.captions.images)
        shares = shares_in_best(resampled, kept)
        shown = {}
        for layer, head in self.order[: min(max(10, kept), len(shares))]:
            index = self.estimated.index((layer, head))
            shown[f"head {layer}:{head}"] = (
                f"{effects.on_hallucinated[index]:.4f} on hallucinated objects, "
                f"{effects.on_correct[index]:.4f} on correct ones, t {effects.t[index]:.1f}, "
                f"among the best {kept} in {shares[index]:.0%} of resamples"
            )
        common = {
            "best heads common to estimate and silencing": self.estimated,
            "best heads common to both halves": self.elsewhere,
        }
        best = set(self.order[:kept])
        return (
            {f"Spearman of {name}": round(value, 2) for name, value in self.rank_correlations.items()}
            | {name: f"{len(best & set(order[:kept]))} of {kept}" for name, order in common.items()}
            | {"object tokens of probability above 0.99": f"{self.saturated:.0%}"}
            | shown
        )


def _rank(reader: _Reader, captions: _Captions, others: _Captions) -> _Ranked:
    """Rank heads on captions, by the estimate and then the best of them exactly.

    Args:
        others: on which only the estimate is made, to see how stable it is.
    """
    estimates, probabilities = zip(*map(reader.estimates, (captions, others)), strict=True)
    differences, elsewhere = (
        contrast(each, half.hallucinated).difference
        for each, half in zip(estimates, (captions, others), strict=True)
    )
    estimated = [reader.heads[index] for index in ranking(differences)]
    candidates = estimated[: max(8, round(_CANDIDATES * len(estimated)))]
    exact = reader.exact(captions, reader.each_alone(candidates))
    order = [candidates[index] for index in ranking(contrast(exact, captions.hallucinated).difference)]
    few = captions.first(_COMPARED)
    silenced = reader.exact(few, reader.each_alone(reader.heads), counts=False)
    compared = {
        "estimate and silencing": [
            contrast(each, few.hallucinated).difference
            for each in (estimates[0][: len(few.hallucinated)], silenced)
        ],
        "both halves": [differences, elsewhere],
    }
    return _Ranked(
        order + estimated[len(candidates) :],
        estimated,
        [reader.heads[index] for index in ranking(elsewhere)],
        exact,
        captions,
        {name: float(spearmanr(*pair).statistic) for name, pair in compared.items()},
        float((torch.cat(probabilities) > 0.99).float().mean()),
    )


def _choose(reader: _Reader, captions: _Captions, order: list[Head]) -> tuple[int, dict[str, Any]]:
    """How many of the first heads to list, on captions on which they were not ranked, and what these do.

    Raises:
        ValueError: no list gains anything.
    """
    counts = [count for count in _COUNTS if count <= len(order) / 10]
    lists = [head_mask([order[:count]], reader.shape) for count in counts[1:]]
    others = [random_sets(order[:count], reader.shape, draws=_RANDOM_SETS) for count in counts[1:]]
    effects = reader.exact(captions, torch.cat([*lists, *others]))
    found = contrast(effects, captions.hallucinated)
    gains = [0.0, *found.difference[: len(lists)].tolist()]
    drops = [0.0, *found.on_correct[: len(lists)].tolist()]
    resampled = resampled_differences(effects[:, : len(lists)], captions.hallucinated, captions.images)
    errors = [0.0, *resampled.std(dim=0).tolist()]
    kept = choose_count(counts, gains, errors, drops, max_correct_drop=_MAX_CORRECT_DROP)
    tried = ", ".join(
        f"{count}: {gain:.3f} +- {error:.3f} (correct objects {drop:.3f})"
        for count, gain, error, drop in zip(counts, gains, errors, drops, strict=True)
        if count
    )
    if not kept:
        raise ValueError(
            "no list of heads lowers the probability of hallucinated objects clearly more than that of "
            f"correct ones, and the latter by {_MAX_CORRECT_DROP} at most, on pictures that it was not found "
            f"on (gain by number of heads {tried}); give more pictures, or such as the model gets wrong"
        )
    index = counts.index(kept)
    by_chance = found.difference[len(lists) :].view(len(lists), -1)[index - 1]
    p = random_set_p(gains[index], by_chance.tolist())
    if p > _CHANCE:
        warnings.warn(
            f"random heads of the same layers do as much as the list (p = {p:.2f}); do not trust it, and give "
            "more pictures",
            stacklevel=3,
        )
    return kept, {
        "gain on held-out pictures": round(gains[index], 3),
        "gain by number of heads": tried,
        "gain of random heads of the same layers": f"{by_chance.mean():.3f} on average, "
        f"{by_chance.max():.3f} at most, in {_RANDOM_SETS} draws",
        "p against random heads": round(p, 3),
    }
