"""Explaining an answer: which passes are made, and what becomes of what they show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.api import Methods, as_methods
from vlmfix.calibration.caption_rows import CaptionRows
from vlmfix.engine.vision_attention import EncoderTap
from vlmfix.engine.vision_cache import cached_vision
from vlmfix.errors import UnsupportedError
from vlmfix.explanation.cells import Cells
from vlmfix.explanation.faithfulness import judge_maps, word_score
from vlmfix.explanation.findings import (
    Finding,
    SinkEvidence,
    hallucination_heads,
    head_finding,
    head_lists,
    sink_findings,
    vision_head_finding,
)
from vlmfix.explanation.forcing import Forced, force, why_not_forced, write
from vlmfix.explanation.formulas import choice, kl_divergence
from vlmfix.explanation.judging import judge
from vlmfix.explanation.objects import PictureObjects
from vlmfix.explanation.observers import Seen
from vlmfix.explanation.reading import Observed, Reader, Scores
from vlmfix.explanation.result import (
    MAPS,
    Compared,
    ExplainedAnswer,
    Explanation,
    Named,
    Parting,
    Sinks,
)
from vlmfix.explanation.words import Word, answer_tokens, find_word, read_words
from vlmfix.inference.chat import render
from vlmfix.inference.pictures import ImageLike, open_images
from vlmfix.methods.base import Method
from vlmfix.models.profiles import find_profile
from vlmfix.recipes import Recipe

PROMPT = "Describe the image."
MAX_NEW_TOKENS = 64
_LIKELIEST = 5


def explain(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: ImageLike,
    prompt: str = PROMPT,
    method: Methods = None,
    *,
    answer: str | None = None,
    word: str | None = None,
    objects: PictureObjects | None = None,
    maps: Sequence[str] = (),
    faithfulness: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    name: str = "",
    progress: Callable[[str], object] | None = None,
) -> Explanation:
    """Show where a model looked while it answered a prompt about a picture, and what a method changes.

    The answer is written greedily, and then read again in one pass in which attention is seen; further passes
    cut paths between image, question and answer. With a method, its answer is written, and both answers are
    forced on it token by token. Nothing is changed in the model.

    Args:
        model: a stock image-text-to-text model, or a wrapper around one.
        processor: its processor.
        image: a picture or its path.
        prompt: what is asked.
        method: see `vlmfix.generate`; None: only the plain answer is explained.
        answer: a given text, which is explained in the place of the plain answer.
        word: the word of the answer that is explained in full: a word, its second mention as `word#2`, or
            the index of a token; None: an object that is not there, if `objects` tells, else the content
            word to which the image adds most.
        objects: what is in the picture; None: not known.
        maps: of `vlmfix.explanation.result.MAPS`, that must be there; (): what the model allows.
        faithfulness: whether the maps of the word are tested by deletion and insertion, which takes a few
            hundred short passes.
        max_new_tokens: length limit of the answers, in tokens.
        name: what the model is called.
        progress: called with what is being done.

    Raises:
        ValueError: the answer has no words, or no such word, or a picture, map or method is not what it must
            be.
        FileNotFoundError: no such picture.
        UnsupportedError: the model is not supported, or a map that is asked for cannot be made of it.
    """
    for each in maps:
        if each not in MAPS:
            raise ValueError(f"maps has {each!r}; use {', '.join(MAPS)}")
    if (isinstance(image, Sequence) and not isinstance(image, str)) or image is None:
        raise ValueError("one picture is explained at a time; pass a picture or its path as image")
    methods = _methods(method)
    [picture] = open_images(image)
    told = progress or (lambda what: None)
    reader = Reader(model, processor, picture, prompt)
    with cached_vision(reader.model):
        return _Work(reader, methods, objects, told).explanation(
            answer, word, maps, max_new_tokens, name or _name(model), faithfulness=faithfulness
        )


def _methods(method: Methods) -> list[Method]:
    if isinstance(method, Recipe) or method == "auto":
        raise ValueError(
            "a recipe may decode with beams, which are not explained; name its methods, such as var+vhr"
        )
    return as_methods(method)


def _name(model: PreTrainedModel) -> str:
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


class _Work:
    """The passes of one explanation."""

    def __init__(
        self,
        reader: Reader,
        methods: Sequence[Method],
        objects: PictureObjects | None,
        progress: Callable[[str], object],
    ) -> None:
        self.reader, self.methods, self.objects, self.progress = reader, methods, objects, progress
        self.left_out = reader.left_out
        profile = find_profile(reader.model)
        self.values = {} if profile is None else profile.values

    def explanation(
        self,
        answer: str | None,
        word: str | None,
        maps: Sequence[str],
        max_new_tokens: int,
        name: str,
        *,
        faithfulness: bool,
    ) -> Explanation:
        reader = self.reader
        encoder = reader.or_reason("encoder", self._encoder)
        if "encoder" in maps and encoder is None:
            raise UnsupportedError(f"there is no map of the vision encoder: {self.left_out['encoder']}")
        self.progress("answering")
        if answer is None:
            token_ids = write(reader, [], max_new_tokens).token_ids
        else:
            token_ids = answer_tokens(answer, render(reader.prompt, 1, reader.processor), reader.processor)
        text, words = read_words(token_ids, reader.processor)
        if not any(
            each.text.strip() and each.start < each.stop and any(map(str.isalnum, each.text))
            for each in words
        ):
            raise ValueError(
                f"the answer is {text!r}, which has no words; ask something else, or give an answer (--answer)"
            )
        if word is not None:
            find_word(words, word)  # a wrong one shows before the work
        self.progress("reading the answer")
        observed = reader.observe(token_ids, keep=bool(self.methods))
        missing = [each for each in maps if each in ("rollout", "contrast") and observed.rollout is None]
        if missing:
            raise UnsupportedError(f"there is no map {missing[0]}: {self.left_out['rollout']}")
        self.progress("cutting paths")
        log_p = observed.scores.log_p
        cuts = reader.or_reason("cuts", lambda: reader.cuts(token_ids)) or {}
        changes = {rule: (own - log_p).numpy() for rule, own in cuts.items()}
        window = math.ceil(reader.layers / 8)
        sliding = None
        if cuts:
            sliding = (reader.sliding_cut(token_ids, window) - log_p).numpy()
        plain = self._told(
            "greedy" if answer is None else "given",
            text,
            token_ids,
            words,
            observed.scores,
            observed.seen,
            image_gain=-changes["image_to_all_text"] if changes else None,
            rollout=None if observed.rollout is None else observed.rollout.numpy(),
        )
        divergence = reader.or_reason("vision-aware heads", reader.head_divergence)
        made: dict[str, Any] = {}
        if self.methods:
            made = self._under_method(plain, observed, max_new_tokens)
        layers = tuple(sorted(observed.seen))
        chosen = find_word(words, word) if word is not None else _word_of(plain)
        background = reader.background()
        explanation = Explanation(
            model=name,
            prompt=reader.prompt,
            picture=reader.picture,
            cells=Cells(reader.located, reader.picture.size),
            layers=layers,
            band=tuple(layer for layer in reader.band if layer in layers) or layers,
            plain=plain,
            word=chosen,
            sinks=self._sinks(observed),
            cuts=changes,
            sliding=sliding,
            window=window,
            divergence=None if divergence is None else divergence.numpy(),
            background=None if background is None else background.numpy(),
            encoder=encoder,
            masks={} if self.objects is None else self._masks(self.objects),
            left_out=self.left_out,
            _heads_at=lambda words: [each.numpy() for each in reader.heads_at(token_ids, words)],
            **made,
        )
        self.progress("judging maps")
        explanation = _with(
            explanation,
            judged=self._judged(explanation),
            head_effects=head_effects(reader, plain, self.values),
        )
        explanation = _with(explanation, findings=findings([explanation], self.values))
        if faithfulness:
            self.progress("deletion and insertion")
            own = {
                each: explanation.cells.of_tokens(explanation.values(each, chosen))
                for each in explanation.maps
            }
            score = word_score(reader, token_ids, words[chosen].tokens)
            tested = judge_maps(score, reader.picture, explanation.cells, own)
            explanation = _with(explanation, faithfulness=tested)
        return explanation

    def _told(
        self,
        label: str,
        text: str,
        token_ids: Sequence[int],
        words: Sequence[Word],
        scores: Scores,
        seen: dict[int, Seen] | None,
        **more: Any,
    ) -> ExplainedAnswer:
        """An answer with what was seen of it."""
        found: dict[str, Any] = {"shares": None}
        if seen is not None:
            layers = sorted(seen)
            band = [layer for layer in self.reader.band if layer in seen] or layers
            found = {
                "shares": torch.stack([seen[layer].sums.mean(dim=0) for layer in band]).mean(dim=0).numpy(),
                "by_head": torch.stack([seen[layer].sums.mean(dim=1) for layer in layers]).numpy(),
                "image_entropy": torch.stack([seen[layer].entropy.mean(dim=1) for layer in layers]).numpy(),
                "attention": torch.stack([seen[layer].image for layer in layers]).numpy(),
            }
        return ExplainedAnswer(
            label=label,
            text=text.strip(),
            token_ids=tuple(token_ids),
            words=words,
            log_p=scores.log_p.numpy(),
            entropy=scores.entropy.numpy(),
            margin=scores.margin.numpy(),
            named=None if self.objects is None else _named(self.objects, text, words),
            **found,
            **more,
        )

    def _sinks(self, observed: Observed) -> Sinks:
        rule, streams = self.reader.sink_rule, [each for _, each in sorted(observed.streams.items())]
        first = torch.stack([each.first for each in streams]).cpu()
        norms = torch.stack([each.norms for each in streams]).cpu().numpy()
        return Sinks(
            rule.threshold,
            rule.dimensions,
            torch.stack([each.scores for each in streams]).cpu().numpy(),
            first.numpy(),
            norms[:, 0],
            norms[:, 1],
        )

    def _under_method(
        self, plain: ExplainedAnswer, observed: Observed, max_new_tokens: int
    ) -> dict[str, Any]:
        """The answer of the methods, and both answers side by side."""
        reader, label = self.reader, "+".join(each.name for each in self.methods)
        self.progress(f"answering under {label}")
        answer = write(reader, self.methods, max_new_tokens)
        activity = {each.name: _activity(each) for each in self.methods}
        text, words = read_words(answer.token_ids, reader.processor)
        made: dict[str, Any] = {
            "method_name": label,
            "parameters": {each.name: each.parameters for each in self.methods},
            "activity": activity,
        }
        reason = why_not_forced(self.methods)
        if reason or not answer.token_ids:
            self.left_out["comparison"] = reason or "the answer under the method is not told by its tokens"
            nothing = Scores(*(torch.full((len(answer.token_ids),), torch.nan) for _ in range(3)))
            told = self._told(label, text or answer.text, answer.token_ids, words, nothing, None)
            return made | {"method": told}
        self.progress(f"forcing both answers on {label}")
        own = force(reader, self.methods, answer.token_ids)
        other = force(reader, self.methods, plain.token_ids)
        same = answer.token_ids == plain.token_ids
        read = observed if same else reader.observe(answer.token_ids)
        told = self._told(label, text, answer.token_ids, words, own.scores, own.seen)
        return made | {
            "method": told,
            "compared": Compared(
                self._parting(plain.token_ids, answer.token_ids, observed.scores, own),
                kl_divergence(_kept(other.scores), _kept(observed.scores)).numpy(),
                other.scores.log_p.numpy(),
                read.scores.log_p.numpy(),
                _attention(other),
            ),
        }

    def _parting(
        self, plain: Sequence[int], method: Sequence[int], scores: Scores, under: Forced
    ) -> Parting | None:
        differing = (
            place for place, pair in enumerate(zip(plain, method, strict=False)) if pair[0] != pair[1]
        )
        place = next(differing, min(len(plain), len(method)))
        if place == max(len(plain), len(method)) or place >= min(len(plain), len(method)):
            return None
        one, other = _kept(scores)[place], _kept(under.scores)[place]
        likeliest = [*one.topk(_LIKELIEST).indices.tolist(), *other.topk(_LIKELIEST).indices.tolist()]
        listed = list(dict.fromkeys(likeliest))
        texts = self.reader.processor.batch_decode([[each] for each in listed])
        return Parting(
            place,
            choice(one, other),
            tuple(texts),
            tuple(one[listed].exp().tolist()),
            tuple(other[listed].exp().tolist()),
        )

    def _encoder(self) -> np.ndarray:
        """What the vision encoder itself attends to, by image token."""
        reader = self.reader
        tap = EncoderTap(reader.model)
        tap.install()
        try:
            reader.logits((), [])
            [image] = tap.images
            found = torch.zeros(image.count)
            for block in image.blocks:
                shown = block.places >= 0
                received = block.attention.mean(dim=0)[shown].cpu()
                found.index_add_(0, block.places[shown].cpu(), received)
        finally:
            tap.remove()
        return found.numpy()

    def _masks(self, objects: PictureObjects) -> dict[str, np.ndarray]:
        width, height = self.reader.picture.size
        for name, mask in objects.masks.items():
            if mask.shape != (height, width):
                raise ValueError(
                    f"the mask of {name} is {mask.shape[1]} x {mask.shape[0]} pixels, the picture {width} x "
                    f"{height}; give the annotations of this very picture"
                )
        return dict(objects.masks)

    def _judged(self, explanation: Explanation) -> dict[int, Any]:
        """Figures of the maps of words that name objects with a mask."""
        found: dict[int, Any] = {}
        for named in explanation.plain.named or ():
            if self.objects is None or not named.is_present or named.category not in explanation.masks:
                continue
            mask, ignored = explanation.masks[named.category], self.objects.ignored.get(named.category)
            figures = {}
            for name in explanation.maps:
                own = judge(explanation.saliency(name, *named.words), mask, ignored=ignored)
                if own is not None:
                    figures[name] = own
            if figures:
                found[named.word] = figures
        return found


def findings(explanations: Sequence[Explanation], values: Mapping[str, Any]) -> list[Finding]:
    """What explained answers of one model say of the values of its profile."""
    sinks = [each.sinks for each in explanations]
    evidence = SinkEvidence(np.stack([each.sizes for each in sinks]), [each.scores for each in sinks])
    found: list[Finding | None] = list(sink_findings(evidence, values, sinks[0].threshold))
    divergences = [each.divergence for each in explanations if each.divergence is not None]
    if divergences:
        found.append(vision_head_finding(np.mean(divergences, axis=0), values))
    effects = [each.head_effects for each in explanations if each.head_effects is not None]
    wrong = [
        not one.is_present
        for each in explanations
        if each.head_effects is not None
        for one in each.plain.named or ()
    ]
    tested = torch.from_numpy(np.concatenate(effects)) if effects else torch.zeros(0, 1)
    found.append(head_finding(tested, torch.tensor(wrong, dtype=torch.bool), values))
    return [each for each in found if each is not None]


def head_effects(reader: Reader, plain: ExplainedAnswer, values: Mapping[str, Any]) -> np.ndarray | None:
    """See `Explanation.head_effects`; None where nothing is named, or the profile lists no heads."""
    heads, named = hallucination_heads(values), plain.named
    if not heads or not named:
        return None
    config = reader.model.config.get_text_config()
    lists = head_lists(heads, (config.num_hidden_layers, config.num_attention_heads))
    places = [plain.words[each.word].tokens[0] for each in named]
    found: np.ndarray = CaptionRows(reader.model, reader.inputs, plain.token_ids).exact(places, lists).numpy()
    return found


def _with(explanation: Explanation, **changes: Any) -> Explanation:
    return dataclasses.replace(explanation, **changes)


def _word_of(plain: ExplainedAnswer) -> int:
    """The word that is explained if nobody names one."""
    invented = [each.word for each in plain.named or () if not each.is_present]
    if invented:
        return invented[0]
    content = [place for place, word in enumerate(plain.words) if word.is_content]
    places = content or range(len(plain.words))
    gains = plain.log_p if plain.image_gain is None else plain.image_gain
    return max(places, key=lambda place: plain.of_word(gains, place))


def _named(objects: PictureObjects, text: str, words: Sequence[Word]) -> list[Named]:
    found = []
    for each in objects.mentions(text):
        at = tuple(
            place for place, word in enumerate(words) if word.start < each.stop and each.start < word.stop
        )
        if at:
            found.append(Named(at, each.category, each.is_present))
    return found


def _kept(scores: Scores) -> Tensor:
    assert scores.log_probabilities is not None
    return scores.log_probabilities


def _attention(forced: Forced) -> np.ndarray | None:
    if forced.seen is None:
        return None
    found: np.ndarray = torch.stack([forced.seen[layer].image for layer in sorted(forced.seen)]).numpy()
    return found


def _activity(method: Method) -> str:
    stats = method.edit_stats()
    share = "" if stats.site_share is None else f"edited {stats.site_share:.0%} of its sites"
    size = "" if stats.size is None else f"size {stats.size:.3g}"
    return "; ".join(filter(None, (share, size))) or "not counted"
