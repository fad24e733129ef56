"""CARVE: ask again about the part of the image to which the question itself draws attention."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from vlmfix.engine.vision_cache import cached_vision
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.keywords import content_words
from vlmfix.inference.rendering import model_inputs, render_conversation
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.image.carve.crop import (
    Refinement,
    bounding_box,
    refine,
    saliency_map,
    select_regions,
)
from vlmfix.methods.image.maps import MapPass, attached_to, locate, map_pass, phrase_map
from vlmfix.methods.image.remembered import RememberedByModel
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import (
    check_choice,
    check_range,
    check_whole,
    layer_indices,
)
from vlmfix.models.profiles import Profile, find_profile

STEP_MODES = ("all", "first", "last", "content")
REGION_RULES = ("at_least", "max")
FINAL_IMAGES = ("original+refined", "refined")

WHOLE_IMAGE = "the region covers the image"
EQUAL_MAPS = "question and instruction give the same map"
NARROW = "the region is too narrow"

# Above these, the region or the question's map tells nothing.
_MAX_COVERED = 0.95
_MAX_CORRELATION = 0.98
# Qwen-VL reads no image whose sides differ more.
_MAX_ASPECT_RATIO = 200

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@register_method("carve")
@dataclass(frozen=True, kw_only=True)
class CARVE(MultiPassMethod[Refinement]):
    """Contrastive Attention Refinement for Visual Enhancement (arXiv 2509.06461).

    The attention that a question draws to the image is divided by that of an instruction without content,
    which leaves what the question itself asks for. The regions where this is highest are kept, the rest is
    blackened, their box is cropped and enlarged, and the model is asked again. Three inferences; the map of
    the instruction is remembered for further questions about the same image. The map passes are greedy, the
    final one decodes as asked. The defaults are those of the released code; `CARVE.paper()` has the paper's.

    All passes ask for a short answer, the final one too, as in the released code: set `answer_suffix=""` for
    captions. Rules of this library that the released code lacks:

    - Where the two maps correlate above 0.98, or the box covers more than 95 % of the image or is 200 times
      as long as it is wide, the image is not refined; then, and without an image, the answer is that of plain
      decoding, without the suffix.
    - The refined image has at most 16 times the pixels of the original.
    - The map lies where the processor shows the image, on the grid of the image tokens; pixels that the model
      does not see are in no region. Tiles of an image add up.
    - Models with fewer than 26 layers are read at 71 to 89 % of their depth.
    - Of several images, the one with the largest total of its map is refined.

    Args:
        contrast_layers: layers whose attention is read, 0-based; None: from the checkpoint's profile, else 20
            to 25, and in models with fewer than 26 layers those at 71 to 89 % of the depth.
        step_mode: "all" steps of both generations, weighted by their number, the "first" or the "last" ones,
            or the mean of those that write "content" words, without function words and punctuation, which is
            of neither paper nor code; of an answer without any ("Yes"), all steps.
        contrast_regularizer: added to the instruction's attention before it divides, positive.
        kept_pixel_fraction: share of the pixels above the threshold, in (0, 1]; 1 leaves the model as it is.
        max_regions: connected regions that are kept, 1 or more.
        region_rule: "max" keeps `max_regions`, "at_least" these or, if that is more, the share
            `kept_pixel_fraction` of all regions, rounded down.
        final_images: "original+refined" or "refined", what the final question is asked about.
        general_instruction: the instruction without content.
        answer_suffix: put after the question and the instruction in all passes, so that they are answered
            briefly; "": none.
        max_map_tokens: length limit of the answers in the map passes, in tokens.
    """

    contrast_layers: tuple[int, ...] | None = None
    step_mode: str = "all"
    contrast_regularizer: float = 1e-8
    kept_pixel_fraction: float = 0.2
    max_regions: int = 3
    region_rule: str = "at_least"
    final_images: str = "original+refined"
    general_instruction: str = "Write a general description of the image."
    answer_suffix: str = "Answer the question using a single word or phrase."
    max_map_tokens: int = 32

    info = MethodInfo(
        stage="image",
        changes="the image: what the question does not ask for is blackened, the rest enlarged",
        where="one map pass for the question, one for an instruction, and the final answer",
        forwards=3.0,
        provenance="released code",
        paper="2509.06461",
        decoding="greedy, sampling, beams, one prompt at a time",
    )
    identity_parameters: ClassVar = {"kept_pixel_fraction": 1}
    identity_reason: ClassVar = "kept_pixel_fraction is 1"
    result_class: ClassVar = Refinement

    _instruction_maps: RememberedByModel[Tensor] = field(
        default_factory=RememberedByModel, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.contrast_layers is not None:
            layers = layer_indices("contrast_layers", self.contrast_layers)
            if not layers:
                raise ValueError("contrast_layers is empty; it must hold one or more layer indices")
            object.__setattr__(self, "contrast_layers", layers)
        check_choice("step_mode", self.step_mode, STEP_MODES)
        check_range("contrast_regularizer", self.contrast_regularizer, 1e-12, 1)
        check_range("kept_pixel_fraction", self.kept_pixel_fraction, 1e-6, 1)
        check_choice("region_rule", self.region_rule, REGION_RULES)
        check_choice("final_images", self.final_images, FINAL_IMAGES)
        for name in ("max_regions", "max_map_tokens"):
            check_whole(name, getattr(self, name), 1)
        if not isinstance(self.general_instruction, str) or not self.general_instruction.strip():
            raise ValueError(f"general_instruction is {self.general_instruction!r}; it must be a text")
        if not isinstance(self.answer_suffix, str):
            raise ValueError(f'answer_suffix is {self.answer_suffix!r}; it must be a text, "" for none')

    @classmethod
    def paper(cls, **parameters: Any) -> Self:
        """The settings of the paper where they differ from those of its code; `parameters` go before both."""
        settings: dict[str, Any] = {
            "step_mode": "last",
            "kept_pixel_fraction": 0.4,
            "max_regions": 2,
            "region_rule": "max",
            "final_images": "refined",
            "answer_suffix": "",
        }
        return cls(**settings | parameters)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        layers = self.contrast_layers
        if layers is None and profile is not None:
            layers = profile.get("carve_contrast_layers")
        if layers is None:
            first, last = (20, 25) if depth >= 26 else (round(0.71 * depth), round(0.89 * depth))
            layers = tuple(range(min(first, depth - 1), min(last, depth - 1) + 1))
        if layers[-1] >= depth:
            raise ValueError(
                f"contrast_layers has {layers[-1]}; the layers of this model go from 0 to {depth - 1}"
            )
        return dataclasses.replace(self, contrast_layers=tuple(layers))

    def ask(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        asked: Conversation,
        generate_kwargs: dict[str, Any],
    ) -> Refinement:
        """The answer about the refined image; of several, the one with the largest total of its map is
        refined."""

        def answered(refinement: Refinement, shown: Conversation) -> Refinement:
            batch = [shown.asking(self._briefly) if refinement.refined else shown]
            [final] = answer_batch(model, processor, batch, **generate_kwargs)
            return dataclasses.replace(refinement, answer=final.text.strip(), final=final)

        with cached_vision(model):
            refinement = self._look(model, processor, asked)
            if not refinement.refined:
                return answered(refinement, asked)
        return answered(refinement, self._finally(asked, refinement))

    def _finally(self, asked: Conversation, refinement: Refinement) -> Conversation:
        """What is asked in the end, with the refined image."""
        refined = refinement.image
        assert refined is not None
        if self.final_images == "original+refined":
            return asked.also_showing(refined)
        return asked.showing(lambda picture: refined if picture is refinement.original else picture)

    def _look(self, model: PreTrainedModel, processor: ProcessorMixin, asked: Conversation) -> Refinement:
        """The map passes and the refined image, still without the final answer."""
        attached = attached_to(model, "CARVE")
        layers = self.resolved(model.config, find_profile(model)).contrast_layers
        assert layers is not None
        pictures = [_opened(picture) for picture in asked.pictures]
        inputs = model_inputs([asked.asking(self._briefly)], processor)
        located = locate(model, processor, inputs, pictures)
        pixels = _digest({name: value for name, value in inputs.items() if name not in _TEXT_INPUTS})
        passed = map_pass(model, processor, inputs, layers, self.max_map_tokens, "CARVE")
        question = self._steps_of(passed)
        general = asked.asking_instead(self._briefly(self.general_instruction))
        text = render_conversation(general, processor)
        key = pixels, text, layers, attached
        instruction = self._instruction_maps.get(model, key)
        if instruction is None:
            inputs = model_inputs([general], processor)
            steps = 1 if self.step_mode == "first" else self.max_map_tokens
            instruction = self._steps_of(map_pass(model, processor, inputs, layers, steps, "CARVE"))
            self._instruction_maps.put(model, key, instruction)
        fused = fuse(
            question,
            instruction,
            step_mode=self.step_mode,
            contrast_regularizer=self.contrast_regularizer,
        )
        counts = [image.count for image in located]
        maps = [
            saliency_map(values, image, picture.size)
            for values, image, picture in zip(fused.split(counts), located, pictures, strict=True)
        ]
        chosen = max(asked.asked_about, key=lambda place: np.nansum(maps[place]))
        original, saliency = pictures[chosen], maps[chosen]
        mask = select_regions(
            saliency,
            kept_pixel_fraction=self.kept_pixel_fraction,
            max_regions=self.max_regions,
            region_rule=self.region_rule,
        )
        box = bounding_box(mask)
        tokens = torch.cat([grid.offsets().flatten() for grid in located[chosen].grids])
        tokens = tokens + sum(counts[:chosen])
        image, reason = refine(original, mask), ""
        if correlation(question[..., tokens], instruction[..., tokens], self.step_mode) > _MAX_CORRELATION:
            reason = EQUAL_MAPS
        elif (box[2] - box[0]) * (box[3] - box[1]) > _MAX_COVERED * mask.size:
            reason = WHOLE_IMAGE
        elif max(image.size) > _MAX_ASPECT_RATIO * min(image.size):
            reason = NARROW
        return Refinement(
            answer="",
            first_answer=passed.answer,
            map_words=self._map_words(passed.answer),
            original=original,
            saliency=saliency,
            box=box,
            image=None if reason else image,
            refined=not reason,
            reason=reason,
        )

    def _steps_of(self, passed: MapPass) -> Tensor:
        """Its attention by steps; a single one where they are averaged."""
        if self.step_mode != "content":
            return passed.attention
        return phrase_map(passed.attention, passed.content)[:, None]

    def _map_words(self, answer: str) -> tuple[str, ...]:
        if self.step_mode != "content":
            return ()
        return tuple(answer[start:stop] for start, stop in content_words(answer))

    def _briefly(self, text: str) -> str:
        return f"{text} {self.answer_suffix}".strip()


def contrast(
    question_attention: Tensor, instruction_attention: Tensor, contrast_regularizer: float
) -> Tensor:
    """The question's factor of the attention, element by element (arXiv 2509.06461, section 3)."""
    return question_attention / (instruction_attention + contrast_regularizer)


def fuse(
    question_attention: Tensor,
    instruction_attention: Tensor,
    *,
    step_mode: str,
    contrast_regularizer: float,
) -> Tensor:
    """Contrasted attention, summed over layers and weighted steps.

    Args:
        question_attention: head-averaged weights of the last row, `(layers, steps, tokens)`.
        instruction_attention: the same for the instruction; the number of steps may differ.
        step_mode: "all" pairs the steps by index up to the shorter generation, with weights 1, 2, ...;
            "first" and "content" take the first step of both, "last" the last one of each.
        contrast_regularizer: see `contrast`.

    Returns:
        `(tokens,)` float64.
    """
    question, weights = _steps(question_attention, instruction_attention, step_mode)
    instruction, _ = _steps(instruction_attention, question_attention, step_mode)
    return weights @ contrast(question, instruction, contrast_regularizer).sum(dim=0)


def correlation(question_attention: Tensor, instruction_attention: Tensor, step_mode: str) -> float:
    """Pearson correlation of the two maps, each fused without the other; arguments as of `fuse`."""
    question, weights = _steps(question_attention, instruction_attention, step_mode)
    instruction, _ = _steps(instruction_attention, question_attention, step_mode)
    maps = torch.stack([weights @ question.sum(dim=0), weights @ instruction.sum(dim=0)])
    return float(torch.nan_to_num(torch.corrcoef(maps)[0, 1]))


def _steps(attention_map: Tensor, other: Tensor, step_mode: str) -> tuple[Tensor, Tensor]:
    """The steps of a map that `step_mode` takes, float64, and their weights."""
    steps = min(attention_map.shape[1], other.shape[1]) if step_mode == "all" else 1
    chosen = attention_map[:, -1:] if step_mode == "last" else attention_map[:, :steps]
    return chosen.double(), torch.arange(1, steps + 1, dtype=torch.float64)


def _opened(picture: Any) -> Image.Image:
    assert isinstance(picture, Image.Image)
    return picture


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Content of the processed images: it holds the pixels and all settings that changed them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
