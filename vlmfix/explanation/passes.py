"""The passes of one explanation, and what becomes of what they show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmfix.engine.vision_attention import EncoderTap
from vlmfix.errors import UnsupportedError
from vlmfix.explanation.answers import Compared, ExplainedAnswer, Named, Parting
from vlmfix.explanation.arrays import Sinks
from vlmfix.explanation.cells import Cells
from vlmfix.explanation.evidence import findings, head_effects
from vlmfix.explanation.faithfulness import STEPS, judge_maps, word_score
from vlmfix.explanation.forcing import Forced, force, why_not_forced, write
from vlmfix.explanation.formulas import choice, kl_divergence
from vlmfix.explanation.judging import judge
from vlmfix.explanation.objects import PictureObjects
from vlmfix.explanation.observers import Seen
from vlmfix.explanation.reading import Observed, Reader, Scores
from vlmfix.explanation.result import Explanation
from vlmfix.explanation.words import Word, answer_tokens, find_word, read_words
from vlmfix.inference.chat import render
from vlmfix.methods.base import Method
from vlmfix.models.profiles import find_profile

_LIKELIEST = 5
_CELLS_A_STEP = 8  # of deletion and insertion, at least: finer steps say no more on small grids


class Passes:
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
        if not any(map(str.isalnum, text)):
            raise ValueError(
                f"the answer is {text!r}, which has no words; ask something else, or give one (--answer)"
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
        explanation = dataclasses.replace(
            explanation,
            judged=self._judged(explanation),
            head_effects=head_effects(reader, plain, self.values),
        )
        explanation = dataclasses.replace(explanation, findings=findings([explanation], self.values))
        if faithfulness:
            self.progress("deletion and insertion")
            own = {
                each: explanation.cells.of_tokens(explanation.values(each, chosen))
                for each in explanation.maps
            }
            score = word_score(reader, token_ids, words[chosen].tokens)
            steps = min(STEPS, math.ceil(math.prod(explanation.cells.shape) / _CELLS_A_STEP))
            tested = judge_maps(score, reader.picture, explanation.cells, own, steps=steps)
            explanation = dataclasses.replace(explanation, faithfulness=tested)
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
        rule, streams = self.reader.sink_rule, [observed.streams[layer] for layer in sorted(observed.seen)]
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
        if place == min(len(plain), len(method)):
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
