"""Greedy decoding of a batch that sequences leave when they have ended."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from vlmfix.engine.running_batch import RunningBatch


def decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Tensor:
    """The loop, for `generate(custom_generate=...)`, which calls it: the tokens are those of the loop of
    transformers.

    Sequences that have ended stay in the batch where the cache is no plain one, where a method watches or a
    branch chooses by what is known of all, and where a logits processor does not say that it can go on.

    Args:
        model: with or without methods attached.
        input_ids: of the prompts, `(batch, prompt)`.
        logits_processor: what says the scores.
        stopping_criteria: of length and end tokens, which `generation_config` has, too.
        generation_config: of the call.
        **model_kwargs: what else `generate` prepared.

    Returns:
        Prompts and answers, `(batch, tokens)`, padded on the right.
    """
    batch = RunningBatch(model, input_ids, logits_processor, generation_config, model_kwargs)
    while batch.goes_on:
        batch.step()
    [prompts] = batch.all_ended()
    return prompts.output(batch.steps)
