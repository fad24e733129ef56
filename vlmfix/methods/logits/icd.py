"""ICD: away from what a disturbing instruction would make the model say (arXiv 2403.18715)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.inference.chat import SystemSlot
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import ScaledContrast
from vlmfix.methods.logits.composed_prompts import Replacement, rewritten
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_token_ids, sequence
from vlmfix.models.profiles import Profile


@register_method("icd")
@dataclass(frozen=True, kw_only=True)
class ICD(ScaledContrast):
    """Instruction Contrastive Decoding (arXiv 2403.18715): away from the same prompt under a disturbing
    instruction.

    The instruction takes the place of the system message, or is put where the chat template would put one.
    Where no processor says how that template goes, where it has no place for a system message, and where a
    prompt does not begin as it says, the instruction stands right before the first image. The released
    code goes through five instructions; this is one of them.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        instruction: in words.
        instruction_ids: in tokens, in the place of `instruction`; no processor is needed then.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    instruction: str = (
        "You are a confused objects detector to provide a fuzzy overview or impression of the image."
    )
    instruction_ids: tuple[int, ...] | None = None

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits under a disturbing instruction",
        where="every step",
        forwards=2.0,
        provenance="released code",
        paper="2403.18715",
        decoding="greedy, sampling, beams, batches, with the processor",
    )
    search_space: ClassVar = {"alpha": Between(0.1, 1.5)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise ValueError(f"instruction is {self.instruction!r}; it must be a text")
        if self.instruction_ids is not None:
            ids = sequence("instruction_ids", self.instruction_ids, "token ids, 0 or more")
            if not ids or any(type(token) is not int or token < 0 for token in ids):
                raise ValueError(f"instruction_ids is {ids!r}; it must hold token ids, 0 or more")
            object.__setattr__(self, "instruction_ids", ids)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        check_token_ids("instruction_ids", self.instruction_ids, config.get_text_config().vocab_size)
        return self

    @property
    def needs_processor(self) -> bool:
        return self.contrasts and self.instruction_ids is None

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if not self.contrasts or not context.layout.has_image:
            return ()
        ids = self.instruction_ids
        if ids is None:
            ids = context.processor.tokenizer(self.instruction, add_special_tokens=False)["input_ids"]
        slot = None if context.processor is None else SystemSlot.of(context.processor)
        prompts, real_tokens, blocks = (
            each[:: context.copies].tolist()
            for each in (context.token_ids, context.layout.real_tokens, context.image_blocks)
        )
        replacements: list[list[Replacement]] = []
        for prompt, real, block in zip(prompts, real_tokens, blocks, strict=True):
            if True not in block:
                replacements.append([])
                continue
            first, image = real.index(True), block.index(True)
            found = slot and slot.put(ids, prompt[first:image])
            start, stop, new = found or (image - first, image - first, ids)
            replacements.append([Replacement(first + start, first + stop, new)])
        return [rewritten(context, inputs_embeds, decoder_inputs, replacements, fused=self.fused)]
