"""SHIELD: image features repaired by a caption and by noise, and an attacked image to move away from."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from vlmfix.engine import compatibility, tokens
from vlmfix.engine.attach import attached_to
from vlmfix.engine.modules import input_device
from vlmfix.engine.vision_cache import PIXELS
from vlmfix.engine.vision_encoder import VisionEncoder
from vlmfix.errors import UnsupportedError
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.rendering import model_inputs, without_placeholders
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.image.remembered import RememberedByModel
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range, check_whole, sequence, shown
from vlmfix.methods.vision.shield.looks import Look, looked_at
from vlmfix.methods.vision.shield.passes import ShieldContrast, ShieldRepair, encoded, with_inserts
from vlmfix.methods.vision.shield.pixels import bounds
from vlmfix.methods.vision.shield.repairs import (
    FEWEST_WORDS,
    kept_words,
    matches,
    patch_weights,
    token_runs,
)
from vlmfix.methods.vision.shield.results import ShieldedAnswer
from vlmfix.methods.vision.shield.text_tower import TextTower
from vlmfix.models.profiles import Profile

PARTS = ("weights", "caption", "bias", "attack")

NO_CAPTION = "the caption of the picture has no full stop"
NO_WORDS = "the picture fits fewer than two words of its caption"

# Pictures of noise that are encoded at once.
_ROWS = 8


@register_method("shield")
@dataclass(frozen=True, kw_only=True)
class SHIELD(MultiPassMethod[ShieldedAnswer]):
    """SHIELD (arXiv 2510.16596): bias and vulnerability of the vision encoder.

    The model captions the picture. Patches that fit words of the caption, in CLIP, are amplified before the
    projector, and the mean response of the encoder to noise is taken off; the words that fit some patch
    follow the picture in the prompt. The answer moves away from what the plain prompt says of a picture that
    was attacked so that it no longer fits its caption. The caption stands in the prompt of the answer alone,
    so that the contrast also carries the caption: say so where results are shown.

    Built from the formulas of the released code, which differs from the paper (no thresholds there, the bias
    at weight 1). The defaults are those of its CHAIR script, which samples; that for POPE has
    `text_threshold=0.011, gain_cut=0.5, bias_weight=0.1, attack_rate=0.14`, that for the hallucination part
    of MME `alpha=0.5, beta=0.5, text_threshold=0.004`. Rules of this library:

    - The caption is greedy, and cut to what CLIP reads (77 tokens); without a full stop in it, nothing is
      amplified, inserted or attacked. With other methods attached, these act on it, too.
    - Pixels are attacked after their normalisation, and stay those of a picture.
    - Each picture of a prompt has a caption of its own; all are remembered for further questions.

    Args:
        clip: folder or hub id of the whole CLIP, text encoder included, whose vision encoder the model has,
            for all parts but "bias"; for LLaVA-1.5 `openai/clip-vit-large-patch14-336`.
        parts: what acts, of "weights" (patches amplified), "caption" (words in the prompt), "bias" (response
            to noise taken off) and "attack" (contrast and cut); () leaves the model as it is.
        alpha: strength of the contrast, in [0, 100]; 0 leaves only the cut.
        beta: plausibility cut, in [0, 1]; 0 rules out none.
        text_threshold: words of the caption count that some patch is like by more than this cosine, in
            [-1, 1].
        gamma: exponent of the gains, in [0.01, 100].
        gain_cut: gains up to this are 0, in [0, 1]; 1 amplifies nothing.
        bias_weight: share of the response to noise that is taken off, in [0, 10].
        noise_images: number of noise pictures.
        epsilon: the most that the attack adds to a pixel before `attack_scale`, in [0, 10].
        steps: of the attack, at most.
        attack_scale: what the attack adds times this goes into the picture, in [0, 1000].
        attack_rate: step of the attack (Adam), in (0, 10].
        caption_prompt: what is asked for the caption.
        caption_tokens: its length limit in tokens.
        seed: of the noise, 0 or more.
    """

    clip: str | None = None
    parts: tuple[str, ...] = PARTS
    alpha: float = 2.0
    beta: float = 0.35
    text_threshold: float = 0.002
    gamma: float = 3.0
    gain_cut: float = 0.55
    bias_weight: float = 0.01
    noise_images: int = 32
    epsilon: float = 0.14
    steps: int = 30
    attack_scale: float = 12.0
    attack_rate: float = 0.02
    caption_prompt: str = "Please describe this image in detail."
    caption_tokens: int = 512
    seed: int = 0

    info: ClassVar = MethodInfo(
        stage="vision",
        changes="image features, by a caption, noise and CLIP; away from the logits of an attacked image",
        where="before the projector; words after the image; every step; a caption and an attack before",
        forwards=3.0,
        provenance="released code",
        paper="2510.16596",
        decoding="greedy, sampling, beams, one prompt at a time",
        families="a CLIP encoder with one set of patches an image (LLaVA-1.5); bias alone: SigLIP, too",
    )
    identity_parameters: ClassVar = {"parts": ()}
    identity_reason: ClassVar = "no part of it acts"
    result_class: ClassVar = ShieldedAnswer

    _towers: dict[Hashable, TextTower] = field(default_factory=dict, init=False, repr=False, compare=False)
    _biases: RememberedByModel[Tensor] = field(
        default_factory=RememberedByModel, init=False, repr=False, compare=False
    )
    _looks: RememberedByModel[Look] = field(
        default_factory=RememberedByModel, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        named = (self.parts,) if isinstance(self.parts, str) else self.parts
        parts = sequence("parts", named, f"some of {', '.join(PARTS)}")
        if not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
            raise ValueError(f"parts is {shown(self.parts)}; it must hold some of {', '.join(PARTS)}, once")
        object.__setattr__(self, "parts", tuple(part for part in PARTS if part in parts))
        if self.clip is not None and (not isinstance(self.clip, str) or not self.clip):
            raise ValueError(f"clip is {shown(self.clip)}; it must be a folder or a hub id of a CLIP")
        check_range("alpha", self.alpha, 0, 100)
        check_range("beta", self.beta, 0, 1)
        check_range("text_threshold", self.text_threshold, -1, 1)
        check_range("gamma", self.gamma, 0.01, 100)
        check_range("gain_cut", self.gain_cut, 0, 1)
        for name in ("bias_weight", "epsilon"):
            check_range(name, getattr(self, name), 0, 10)
        check_range("attack_scale", self.attack_scale, 0, 1000)
        check_range("attack_rate", self.attack_rate, 1e-6, 10)
        for name in ("noise_images", "steps", "caption_tokens"):
            check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed, 0, 2**31)
        if not isinstance(self.caption_prompt, str) or not self.caption_prompt.strip():
            raise ValueError(f"caption_prompt is {shown(self.caption_prompt)}; it must be a text")

    @property
    def is_identity(self) -> bool:
        return not any(map(self._acts, PARTS))

    @property
    def _captions(self) -> bool:
        """Whether a caption and CLIP are needed."""
        return self._acts("weights") or self._acts("caption") or self._attacks

    @property
    def _attacks(self) -> bool:
        return "attack" in self.parts and self.alpha > 0

    def _acts(self, part: str) -> bool:
        """Whether a part is there and its numbers change something."""
        strengths = {"weights": self.gain_cut < 1, "bias": self.bias_weight > 0}
        strengths |= {"attack": self.alpha > 0 or self.beta > 0}
        return part in self.parts and strengths.get(part, True)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        if self._captions and self.clip is None:
            raise ValueError(
                "clip is not given, and checkpoints of vision-language models have no text encoder of CLIP; "
                "pass clip=..., a folder or hub id of the CLIP whose vision encoder the model has "
                "(openai/clip-vit-large-patch14-336 for LLaVA-1.5), or parts=bias"
            )
        return self

    def ask(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        asked: Conversation,
        generate_kwargs: dict[str, Any],
    ) -> ShieldedAnswer:
        """The looks at all pictures of the conversation, and the answer."""
        self.resolve(model.config, None)
        compatibility.check_model(model)
        encoder = VisionEncoder(model)
        if self._captions and not encoder.has_class_token:
            raise UnsupportedError(
                f"the vision encoder of {model.config.model_type} is no CLIP, so that no text encoder goes "
                "with it; use SHIELD with parts=bias, or a method that acts elsewhere"
            )
        pictures = [picture for picture in asked.pictures if isinstance(picture, Image.Image)]
        inputs = model_inputs([asked], processor)
        pixels = inputs.get(PIXELS)
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) != len(pictures):
            raise UnsupportedError(
                f"{type(processor).__name__} cuts pictures into tiles or patches, and SHIELD repairs one set "
                "of patches a picture; use a method that acts elsewhere"
            )
        pixels = pixels.to(input_device(model), dtype=model.dtype)
        features, image_tokens = encoded(model, encoder, pixels)
        looks = self._look(model, processor, encoder, pictures, pixels, features)
        nothing = features.new_zeros(features.shape[:2], dtype=torch.float32)
        gains = [
            zero if look.gains is None else look.gains for look, zero in zip(looks, nothing, strict=True)
        ]
        bias = self._bias(model, encoder, pixels, features) if self._acts("bias") else nothing[0][:, None]
        counts = [len(each) for each in image_tokens]
        image_token = tokens.image_token(model.config)
        inserts = [look.insert for look in looks]
        _, inserted = with_inserts(inputs, image_token, counts, inserts)
        in_branch = None
        if any(look.features is not None for look in looks):
            pairs = zip(looks, image_tokens, strict=True)
            in_branch = torch.cat([own if look.features is None else look.features for look, own in pairs])
        reason = ""
        with ExitStack() as stack:
            repair = ShieldRepair(
                features=features,
                bias=bias.to(features.device),
                weights=torch.stack(gains).to(features.device),
                bias_weight=self.bias_weight if self._acts("bias") else 0.0,
            )
            repairs = self._acts("bias") or any(look.gains is not None for look in looks)
            contrasts = in_branch is not None or (self._acts("attack") and not self._attacks)
            if repairs:
                stack.enter_context(repair(model, processor))
            if contrasts:
                contrast = ShieldContrast(
                    alpha=self.alpha, beta=self.beta, features=in_branch, inserted=inserted
                )
                stack.enter_context(contrast(model, processor))
            if not repairs and not contrasts and not inserted.any():
                reason = NO_WORDS if any(look.caption for look in looks) else NO_CAPTION

            def change(given: BatchFeature) -> BatchFeature:
                return with_inserts(given, image_token, counts, inserts)[0]

            [final] = answer_batch(model, processor, [asked], change_inputs=change, **generate_kwargs)
        return ShieldedAnswer(
            answer=final.text.strip(),
            final=final,
            pictures=looked_at(model, processor, inputs, pictures, looks),
            shielded=not reason,
            reason=reason,
        )

    def _look(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        encoder: VisionEncoder,
        pictures: Sequence[Image.Image],
        pixels: Tensor,
        features: Tensor,
    ) -> list[Look]:
        """Caption, gains, words and attack of each picture, as far as they are needed."""
        if not self._captions:
            return [Look()] * len(pictures)
        tower = self._tower(pixels.device)
        tower.check(features, pixels)
        attachment = attached_to(model)
        attached = () if attachment is None else attachment.methods
        keys = [(hashlib.sha256(row.float().cpu().numpy().tobytes()).digest(), attached) for row in pixels]
        found = [self._looks.get(model, key) for key in keys]
        missing = [place for place, look in enumerate(found) if look is None]
        if missing:
            asked = [Conversation.of(pictures[place], self.caption_prompt) for place in missing]
            greedy = plain_decoding(model, {"max_new_tokens": self.caption_tokens})
            answers = answer_batch(model, processor, asked, **greedy)
            for place, answer in zip(missing, answers, strict=True):
                caption = _up_to_full_stop(without_placeholders(answer.text, processor))
                look = Look()
                if caption:
                    look = self._looked(
                        model, processor, encoder, tower, caption, pixels[place], features[place]
                    )
                self._looks.put(model, keys[place], look)
                found[place] = look
        return [look for look in found if look is not None]

    def _looked(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        encoder: VisionEncoder,
        tower: TextTower,
        caption: str,
        pixels: Tensor,
        features: Tensor,
    ) -> Look:
        """What one picture and its caption give."""
        caption = tower.covered(caption)
        matched = matches(features, tower.states(caption))
        kept = kept_words(matched, self.text_threshold)
        look = Look(caption)
        if int(kept.sum()) >= FEWEST_WORDS:
            if self._acts("weights"):
                gains = patch_weights(matched, kept, gamma=self.gamma, gain_cut=self.gain_cut)
                look = look._replace(gains=gains if bool(gains.any()) else None)
            if self._acts("caption"):
                own: Any = processor
                ids = own.tokenizer(caption)["input_ids"]
                runs = token_runs(kept, len(ids))
                look = look._replace(insert=tuple(id for a, b in runs for id in ids[a : b + 1]))
        if self._attacks:
            attack = tower.attack(
                pixels,
                caption,
                bounds(processor),
                epsilon=self.epsilon,
                steps=self.steps,
                scale=self.attack_scale,
                rate=self.attack_rate,
            )
            _, [attacked] = encoded(model, encoder, attack.pixels[None])
            look = look._replace(attack=attack, features=attacked)
        return look

    def _tower(self, device: torch.device) -> TextTower:
        assert self.clip is not None
        if device not in self._towers:
            self._towers[device] = TextTower(self.clip, device)
        return self._towers[device]

    def _bias(
        self, model: PreTrainedModel, encoder: VisionEncoder, pixels: Tensor, features: Tensor
    ) -> Tensor:
        """Mean features of noise pictures, `(patches, features)` float32; the same for all pictures."""
        key = pixels.shape[1:], pixels.dtype
        bias = self._biases.get(model, key)
        if bias is None:
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.rand(self.noise_images, *pixels.shape[1:], generator=generator).to(pixels)
            bias = torch.zeros_like(features[0], dtype=torch.float32)
            for rows in noise.split(_ROWS):
                bias += encoded(model, encoder, rows)[0].float().sum(dim=0) / self.noise_images
            self._biases.put(model, key, bias)
        return bias


def _up_to_full_stop(text: str) -> str:
    """A text up to its last full stop; "" without one."""
    return text[: text.rfind(".") + 1].strip()
