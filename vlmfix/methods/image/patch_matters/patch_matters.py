"""Patch Matters: a caption of the whole picture from captions of its parts, of what is reliable in them."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine import tokens
from vlmfix.engine.vision_cache import cached_vision
from vlmfix.errors import UnsupportedError
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.keywords import asks_yes_or_no
from vlmfix.inference.rendering import model_inputs
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.image.carve.carve import CARVE
from vlmfix.methods.image.patch_matters import boxes, prompts
from vlmfix.methods.image.patch_matters.aggregation import GROUPINGS, Job, Scorer, aggregate
from vlmfix.methods.image.patch_matters.boxes import Box, Detection
from vlmfix.methods.image.patch_matters.results import DetailedCaption, Region
from vlmfix.methods.image.patch_matters.writer import Writer
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_choice, check_range, check_whole

YES_OR_NO = "the question wants a yes or no, and no description"
SMALL = "the picture has fewer than two by two tokens a quadrant"
NO_FINAL = "the last call wrote nothing; the answer is the description of the whole"

Detector = Callable[[Image.Image], Sequence[Detection]]

# Temperatures of the paper's captions.
_GLOBAL, _REGION = 0.2, 0.7
# A semantic patch that covers so much of the picture gets no captions of its own.
_MOST_OF_IT = 0.4
# Tokens of a picture of four quadrants of two by two tokens.
_FEWEST_TOKENS = 16


@register_method("patch_matters")
@dataclass(frozen=True, kw_only=True)
class PatchMatters(MultiPassMethod[DetailedCaption]):
    """Patch Matters: divide, describe, aggregate (arXiv 2504.06666).

    Four quadrants and a semantic patch of the picture are captioned several times each. Their sentences are
    sorted into those that agree, that contradict each other, and others; the doubtful ones are scored on
    their crop, and what is reliable becomes a text for each region, which are merged with the caption of the
    whole. All is done by ordinary calls of the model: about 16 captions and 12 texts a picture.

    It is built from the steps of the paper and of its code, with own prompts, and **by default without the
    models around it**: the paper has an open-vocabulary detector, BLIP for the scores and Llama 3.1 8B for
    the texts. Here the model itself writes the texts, so that it must be able to follow instructions without
    a picture: the embedded models cannot, and their last call seldom writes a caption. Rules of this library:

    - The prompt is asked about the whole and about every region, so that it must ask for a description; one
      that wants a yes or no is answered by plain decoding.
    - Without a detector, quadrants reach over the middle by `quadrant_overlap`, and the semantic patch is the
      box that CARVE finds for a short caption, or the whole picture.
    - Sentences in the same words agree, whatever the language model says.
    - Of the caption of the whole, sentences that nothing contradicts are scored on the whole picture.
    - Quadrants in no pair go into the last call with their own texts.
    - The calls are sampled at the paper's temperatures, each from a seed of its own; the last one decodes as
      asked, where the paper samples it at temperature 0.2. Where it writes nothing, the answer is the
      description of the whole.

    Args:
        samples_per_region: captions of each region; 0 leaves the model as it is.
        grouping: "llm" asks the language model which sentences agree and which contradict each other;
            "embedding" has those agree whose content words have like input embeddings, and sees no
            contradictions.
        keep_score: above which a doubtful sentence is kept, in [-1, 1]; None: 0.3 with a `scorer`, as in the
            paper, and 0.5 without one.
        box_merge_iou: detections with a larger IoU are merged, in [0, 1].
        grow_share: a quadrant grows by detections that lie inside it by more than this, in [0, 1].
        pair_iou: neighbours with a larger IoU are merged, in [0, 1].
        quadrant_overlap: share of its sides by which a quadrant reaches over the middle, in [0, 1), without a
            detector.
        max_caption_tokens: length limit of every caption and text but the last, in tokens.
        seed: of the sampled captions and texts.
        detector: from a picture to what it shows, `vlmfix.Detection`s; None: none.
        scorer: from a picture and sentences to a score each; None: the probability of yes against no when the
            model is asked whether the sentence is true of the crop.
    """

    samples_per_region: int = 3
    grouping: str = "llm"
    keep_score: float | None = None
    box_merge_iou: float = 0.3
    grow_share: float = 0.3
    pair_iou: float = 0.4
    quadrant_overlap: float = 0.15
    max_caption_tokens: int = 512
    seed: int = 0
    detector: Detector | None = None
    scorer: Scorer | None = None

    info: ClassVar = MethodInfo(
        stage="image",
        changes="the caption: merged from captions of the parts of the image, of what is reliable in them",
        where="captions of the whole, of quadrants and of a semantic patch, and calls without the image",
        forwards=30.0,
        provenance="reconstruction",
        paper="2504.06666",
        decoding="greedy, sampling, beams, one prompt at a time",
    )
    identity_parameters: ClassVar = {"samples_per_region": 0}
    identity_reason: ClassVar = "samples_per_region is 0"
    result_class: ClassVar = DetailedCaption

    def __post_init__(self) -> None:
        check_whole("samples_per_region", self.samples_per_region, 0, 100)
        check_choice("grouping", self.grouping, GROUPINGS)
        if self.keep_score is not None:
            check_range("keep_score", self.keep_score, -1, 1)
        for name in ("box_merge_iou", "grow_share", "pair_iou"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("quadrant_overlap", self.quadrant_overlap, 0, 0.99)
        check_whole("max_caption_tokens", self.max_caption_tokens, 1)
        check_whole("seed", self.seed, 0)
        for name in ("detector", "scorer"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ValueError(f"{name} is {value!r}; it must be a function, given in Python")

    def ask(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        asked: Conversation,
        generate_kwargs: dict[str, Any],
    ) -> DetailedCaption:
        """The caption of the whole picture, merged from those of its parts."""
        [picture] = (each for each in asked.pictures if isinstance(each, Image.Image))
        with cached_vision(model):
            result = self._described(model, processor, picture, asked.question.text)
        prompt = Conversation.of(None, result.final_prompt)
        [final] = answer_batch(model, processor, [prompt], **generate_kwargs)
        text, reason = final.text.strip(), ""
        if not text:
            text = result.global_caption if result.whole is None else result.whole.text
            final, reason = dataclasses.replace(final, text=text), NO_FINAL
        return dataclasses.replace(result, answer=text, final=final, reason=reason)

    def why_plain(self, model: PreTrainedModel, processor: ProcessorMixin, asked: Conversation) -> str:
        if len(asked.messages) > 1:
            raise UnsupportedError(
                "PatchMatters takes one text with its pictures, and no conversation; ask it alone"
            )
        reason = super().why_plain(model, processor, asked)
        if reason:
            return reason
        if len(asked.pictures) > 1:
            raise UnsupportedError(
                "Patch Matters describes one picture, and the prompt holds several; ask about each alone"
            )
        if asks_yes_or_no(asked.question.text):
            return YES_OR_NO
        input_ids = model_inputs([asked], processor)["input_ids"]
        count = int((input_ids == tokens.image_token(model.config)).sum())
        return SMALL if count < _FEWEST_TOKENS else ""

    def _described(
        self, model: PreTrainedModel, processor: ProcessorMixin, picture: Image.Image, prompt: str
    ) -> DetailedCaption:
        """All but the last call."""
        item = hashlib.sha256(f"{picture.size} {prompt} ".encode() + picture.tobytes()).hexdigest()
        writer = Writer(model, processor, self.seed, item)
        limit = self.max_caption_tokens
        [whole] = writer.captions([("global", 0, picture)], prompt, _GLOBAL, limit)
        [short] = writer.captions([("short", 0, picture)], prompts.SHORT, _GLOBAL, limit)
        found = None if self.detector is None else boxes.kept_detections(list(self.detector(picture)))
        semantic, source = self._semantic(model, processor, picture, short, found)
        parts = {f"quadrant {place}": box for place, box in enumerate(self._quadrants(picture, found), 1)}
        if boxes.iou(semantic, boxes.whole(picture.size)) < _MOST_OF_IT:
            parts["semantic"] = semantic
        jobs = []
        placed = {name: boxes.in_pixels(box, picture.size) for name, box in parts.items()}
        crops = {name: picture.crop(box) for name, box in placed.items()}
        wanted = [(name, number) for name in parts for number in range(self.samples_per_region)]
        captions = writer.captions([(*each, crops[each[0]]) for each in wanted], prompt, _REGION, limit)
        for name in parts:
            own = [text for (region, _), text in zip(wanted, captions, strict=True) if region == name]
            jobs.append(Job(name, placed[name], crops[name], own, [crops[name]] * len(own)))
        regions = {region.id: region for region in self._merged(writer, jobs)}
        later = self._pairs(picture, regions)
        if "semantic" in regions:
            patch = regions["semantic"]
            later["whole"] = Job(
                "whole", (0, 0, *picture.size), patch.image, [whole, patch.text], [picture, patch.image]
            )
        merged = {region.id: region for region in self._merged(writer, list(later.values()))}
        improved = merged.pop("whole", None)
        paired = {number for name in merged for number in re.findall(r"\d", name)}
        alone = [region for name, region in regions.items() if name != "semantic" and name[-1] not in paired]
        told = [(boxes.scaled(each.box, picture.size), each.text) for each in (*merged.values(), *alone)]
        text = (improved.text if improved is not None else "") or whole
        return DetailedCaption(
            answer="",
            short_caption=short,
            global_caption=whole,
            detections=None if found is None else tuple(found),
            semantic_box=boxes.in_pixels(semantic, picture.size),
            semantic_source=source,
            regions=tuple(regions.values()),
            pairs=tuple(merged.values()),
            whole=improved,
            final_prompt=prompts.final(prompt, text, [each for each in told if each[1]]),
            divided=True,
        )

    def _merged(self, writer: Writer, jobs: Sequence[Job]) -> list[Region]:
        keep_score = self.keep_score
        if keep_score is None:
            keep_score = 0.5 if self.scorer is None else 0.3
        return aggregate(
            writer,
            jobs,
            self.scorer or writer.truth,
            grouping=self.grouping,
            keep_score=keep_score,
            limit=self.max_caption_tokens,
        )

    def _quadrants(self, picture: Image.Image, found: Sequence[Detection] | None) -> list[Box]:
        if found is None:
            return boxes.quadrants(picture.size, self.quadrant_overlap)
        # Without any detection, the whole picture is the one box.
        known = [each.box for each in found] or [boxes.whole(picture.size)]
        merged = boxes.merged(known, self.box_merge_iou)
        return [boxes.grown(each, merged, self.grow_share) for each in boxes.quadrants(picture.size)]

    def _semantic(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        picture: Image.Image,
        short: str,
        found: Sequence[Detection] | None,
    ) -> tuple[Box, str]:
        """The box of what the short caption speaks of, and by what it was found."""
        if found is not None:
            named = [each.box for each in found if is_named(each.label, short)]
            if named:
                return boxes.union(*named), "detector"
        elif short:
            one = CARVE(max_regions=1, region_rule="max", step_mode="first", answer_suffix="")
            try:
                seen = one.run(model, processor, picture, short, max_new_tokens=1)
            except UnsupportedError:  # where its tokens lie is not known, or some are dropped
                pass
            else:
                if seen.refined and seen.box is not None:
                    return seen.box, "attention map"
        return boxes.whole(picture.size), "whole image"

    def _pairs(self, picture: Image.Image, regions: dict[str, Region]) -> dict[str, Job]:
        """Neighbouring quadrants that overlap, to be merged."""
        jobs = {}
        for first, second in boxes.NEIGHBOURS:
            one, other = regions[f"quadrant {first + 1}"], regions[f"quadrant {second + 1}"]
            if boxes.iou(one.box, other.box) > self.pair_iou:
                name = f"quadrants {first + 1} and {second + 1}"
                box = boxes.in_pixels(boxes.union(one.box, other.box), picture.size)
                jobs[name] = Job(
                    name, box, picture.crop(box), [one.text, other.text], [one.image, other.image]
                )
        return jobs


def is_named(label: str, caption: str) -> bool:
    """Whether a caption speaks of a kind of object, one or several."""
    return re.search(rf"\b{re.escape(label.strip())}(s|es)?\b", caption, re.IGNORECASE) is not None
