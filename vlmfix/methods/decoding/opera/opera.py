"""OPERA: beams that lean on one summary token are penalised, and taken back if they go on so."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

from vlmfix.engine import kernels
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.stats import Sums
from vlmfix.engine.step_decoder import PromptBatch
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.decoding.opera.beam import Finished, Rules
from vlmfix.methods.decoding.opera.penalty import attention_rows
from vlmfix.methods.decoding.opera.search import Search, SearchSettings, Seen
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_choice, check_range, check_whole
from vlmfix.models.structure import text_decoder

RANKED_LENGTHS = ("prompt+answer", "answer")


@register_method("opera")
@dataclass(frozen=True, kw_only=True)
class OPERA(Method, ChoosesTokens):
    """Over-trust Penalty and Retrospection-Allocation (arXiv 2311.17911).

    A beam search that tries the likeliest tokens of every beam before it chooses. Each is penalised by how
    much the answer, itself included, attends to one earlier token of the answer in the last layer; the first
    ten by how little they attend to the image. If all beams lean on the same token for long, the answer is
    taken back to the token after it, which is chosen anew among all others.

    It is a loop of its own for `generate`: `with opera(model): model.generate(..., num_beams=5,
    custom_generate=opera.decode)`. Alternatives are read in one pass, and each prompt of a batch is decoded
    by itself: logits processors and stopping criteria see the beams of one prompt at a time.

    As in the released code, finished beams rank by their sum of log-probabilities, divided by the length of
    prompt and answer without the end token (`length_penalty` is its power). Next to a prompt with an image,
    answers then hardly differ in length, so that short ones win more often than in `generate`. All tokens of
    the prompt count but padding. The released code holds its column scores in float16 and gives tokens that
    it does not try a logit of -999, so that beyond penalties of about 1,000 it chooses arbitrary ones; here
    scores stay finite, in float32, and other tokens are ruled out.

    Args:
        num_attn_candidates: tokens that are tried in every beam, 1 or more; all others are ruled out. With 1
            a beam cannot branch, so that the penalty has no effect.
        threshold: the answer is taken back when all beams have found the same token more often than this, 1
            or more; None: never. Below 2, when the token after that one is still to be chosen, that one
            goes, too.
        scale_factor: on the attention to tokens of the answer before it is multiplied up, positive.
        penalty_weights: strength of the penalty, in [0, 1000]; 0 together with `threshold=None` tries
            nothing: plain beam search.
        window_size: number of tokens that can be taken back, 1 or more.
        ranked_length: by what finished beams are divided: "prompt+answer", or "answer", end token included,
            as in `generate`.
    """

    num_attn_candidates: int = 5
    threshold: float | None = 15
    scale_factor: float = 50.0
    penalty_weights: float = 1.0
    window_size: int = 512
    ranked_length: str = "prompt+answer"

    info: ClassVar = MethodInfo(
        stage="decoding",
        changes="choice of tokens: less trust in summary tokens, and second thoughts",
        where="every step, by the attention of the last layer",
        forwards=1.0,
        provenance="released code",
        paper="2311.17911",
        decoding="beams",
    )
    identity_parameters: ClassVar = {"penalty_weights": 0, "threshold": None}
    needs_image: ClassVar = False  # the attention to it is 0 then
    keeps_prefix: ClassVar = True

    def __post_init__(self) -> None:
        for name in ("num_attn_candidates", "window_size"):
            check_whole(name, getattr(self, name), 1)
        if self.threshold is not None:
            check_range("threshold", self.threshold, 1, math.inf)
        check_range("scale_factor", self.scale_factor, 1e-6, 1e6)
        check_range("penalty_weights", self.penalty_weights, 0, 1000)
        check_choice("ranked_length", self.ranked_length, RANKED_LENGTHS)

    @classmethod
    def fast(cls) -> Self:
        """The published fast preset, with one beam: greedy decoding that takes tokens back.

        With a single candidate one of the published five beams lives; the penalty has no effect.
        """
        return cls(num_attn_candidates=1, threshold=25)

    def decoding(self, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {"num_beams": 1 if self.num_attn_candidates == 1 else 5}
        if not self.is_identity:
            own["custom_generate"] = self.decode
        return own | dict(generate_kwargs)

    def check_generate(self, generate_kwargs: Mapping[str, Any]) -> None:
        if getattr(generate_kwargs.get("custom_generate"), "__self__", None) != self:
            raise UnsupportedError(
                "OPERA is attached, but generate would decode without it: 'opera = OPERA(); with "
                "opera(model): model.generate(..., num_beams=5, custom_generate=opera.decode)', or "
                "vlmfix.generate, without a method that asks several times"
            )
        if generate_kwargs.get("streamer") is not None:
            raise UnsupportedError("OPERA takes tokens back, which a streamer cannot; generate without one")
        if generate_kwargs.get("stop_strings"):
            raise UnsupportedError(
                "transformers hands no tokenizer to loops such as OPERA's, which stop_strings needs; pass "
                "stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)] to generate in its place"
            )

    def decode(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor | GenerateBeamDecoderOnlyOutput:
        """The loop, for `generate(custom_generate=...)`, which calls it.

        Args:
            input_ids: of the prompts, `(samples * beams, tokens)`.
            logits_processor: called with log-probabilities, minus infinity at tokens that are not tried.
            stopping_criteria: called for the best continuations of a prompt.
            generation_config: of the call.
            **model_kwargs: what else `generate` prepared.

        Returns:
            Prompts and answers, `(samples * num_return_sequences, tokens)`; or an output with
            `sequences_scores`, where asked for by `output_scores`.

        Raises:
            UnsupportedError: the method is not attached, or the call asks for what it cannot do.
        """
        self._check(model, logits_processor, generation_config, len(input_ids))
        beams, wanted = generation_config.num_beams, generation_config.num_return_sequences
        ends = generation_config.eos_token_id
        end_tokens = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        rules = Rules(
            beams=beams,
            early_stopping=generation_config.early_stopping,
            length_penalty=generation_config.length_penalty,
            max_new_tokens=generation_config.max_length - input_ids.shape[1],
            end_tokens=end_tokens,
        )
        settings = SearchSettings(
            threshold=math.inf if self.threshold is None else self.threshold,
            num_attn_candidates=self.num_attn_candidates,
            window_size=self.window_size,
            scale_factor=self.scale_factor,
            penalty_weights=self.penalty_weights,
            is_plain=self.is_identity,
        )
        prompts = PromptBatch(model, input_ids, model_kwargs, beams)
        lengths: list[int | None] = [None] * prompts.samples
        ranks = beams > 1 and not self.is_identity
        if self.ranked_length == "prompt+answer" and prompts.context is not None and ranks:
            lengths = prompts.context.layout.real_tokens[::beams].sum(dim=1).tolist()
        answers: list[Finished] = []
        taken_back: list[tuple[int, int]] = []
        for sample in range(prompts.samples):
            rows = slice(sample * beams, (sample + 1) * beams)
            processors = _of_rows(logits_processor, rows, len(input_ids))
            with prompts.sample(sample) as step_decoder:
                own = dataclasses.replace(rules, prompt_tokens=lengths[sample])
                search = Search(
                    self, settings, own, step_decoder, input_ids[rows], processors, stopping_criteria
                )
                found = search.run()[:wanted]
            # Where fewer sequences could be found than asked for, the others are empty.
            answers += [*found, *[Finished(-math.inf, ())] * (wanted - len(found))]
            taken_back.append((search.rollbacks.times.total(), search.tokens_taken_back))
        if prompts.context is not None:
            prompts.context.state[self, "taken back"] = taken_back
        pad = generation_config.pad_token_id
        pad = (end_tokens or [-1])[0] if pad is None else pad
        length = max(len(each.tokens) for each in answers)
        tokens = [[*each.tokens, *[pad] * (length - len(each.tokens))] for each in answers]
        heads = input_ids[::beams].repeat_interleave(wanted, dim=0)
        sequences = torch.cat([heads, torch.tensor(tokens, dtype=heads.dtype, device=heads.device)], dim=1)
        if not generation_config.return_dict_in_generate:
            return sequences
        scores = torch.tensor([each.score for each in answers], device=heads.device)
        return GenerateBeamDecoderOnlyOutput(
            sequences=cast("torch.LongTensor", sequences),
            sequences_scores=scores if generation_config.output_scores else None,
        )

    def _check(
        self,
        model: PreTrainedModel,
        processors: LogitsProcessorList,
        config: GenerationConfig,
        sequences: int,
    ) -> None:
        attachment = vars(text_decoder(model)).get(kernels.ATTRIBUTE)
        if not self.is_identity and (attachment is None or self not in attachment.methods):
            raise UnsupportedError(
                "OPERA.decode reads attention, for which it must be attached: 'opera = OPERA(); with "
                "opera(model): model.generate(..., num_beams=5, custom_generate=opera.decode)'"
            )
        if config.do_sample:
            raise UnsupportedError("OPERA searches with beams and does not sample; pass do_sample=False")
        if config.num_beams == 1 and self.num_attn_candidates > 1 and not self.is_identity:
            raise UnsupportedError(
                f"num_beams is 1 and num_attn_candidates is {self.num_attn_candidates}, of which one beam "
                "would keep the best alone; pass num_beams=5 to generate, or use OPERA.fast()"
            )
        if config.num_return_sequences > config.num_beams:
            raise ValueError(
                f"num_return_sequences is {config.num_return_sequences}; it must be at most num_beams, "
                f"{config.num_beams}"
            )
        for name in ("output_logits", "output_attentions", "output_hidden_states"):
            if getattr(config, name):
                raise UnsupportedError(
                    f"OPERA takes steps back, so that {name} has no place in its result; generate without it"
                )
        if sequences > config.num_beams and any(
            isinstance(each, PrefixConstrainedLogitsProcessor) for each in processors
        ):
            raise UnsupportedError(
                "OPERA decodes one prompt after the other, so that prefix_allowed_tokens_fn cannot tell them "
                "apart; generate for one prompt at a time"
            )

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        watched = layer == context.num_layers - 1 and (self, "seen") in context.state
        return context.layout_at(layer).last_row if watched else None

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        layout, rows = context.layout_at(layer), attention_rows(weights)
        prompt, behind = rows.split([layout.length, rows.shape[-1] - layout.length], dim=-1)
        image = layout.image_tokens.to(rows.device)[:, None]
        earlier, own = behind.split([behind.shape[-1] - rows.shape[1], rows.shape[1]], dim=-1)
        answer = torch.cat([earlier, own.diagonal(dim1=-2, dim2=-1)[..., None]], dim=-1)
        context.state[self, "seen"].append(Seen((prompt * image).sum(dim=-1), answer))

    def report(self, context: DecodeContext, sums: Sums) -> None:
        taken_back = context.state.get((self, "taken back"), [])
        if taken_back:
            sums.details = {"size": "largest penalty less the smallest of a beam, after the first tokens"}
            for name, values in zip(
                ("rollbacks", "tokens taken back"), zip(*taken_back, strict=True), strict=True
            ):
                sums.other_sizes[name] = (float(sum(values)), len(values))

    def inactive_reason(self, context: DecodeContext) -> str:
        if (self, "taken back") not in context.state:
            return "the prompts were read without its decode; pass custom_generate=opera.decode to generate"
        drew = "" if self.threshold is None else f" more than {self.threshold:g} times"
        return (
            "the penalty never changed which candidate was the best, and no token of the answer drew all "
            f"beams{drew or ', as threshold is None'}; raise penalty_weights or "
            f"{'lower' if drew else 'set'} threshold"
        )


def _of_rows(processors: LogitsProcessorList, rows: slice, total: int) -> LogitsProcessorList:
    """Processors that `generate` made for all of its sequences, for some of them."""
    own = LogitsProcessorList(copy.copy(each) for each in processors)
    for each in own:
        for name in ("prompt_ignore_length", "encoder_input_ids"):
            value = getattr(each, name, None)
            if isinstance(value, Tensor) and value.shape[:1] == (total,):
                setattr(each, name, value[rows])
    return own
