"""What explained answers give as evidence about the profile of their model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vlmfix.calibration.caption_rows import CaptionRows
from vlmfix.explanation.answers import ExplainedAnswer
from vlmfix.explanation.findings import (
    Finding,
    SinkEvidence,
    hallucination_heads,
    head_finding,
    head_lists,
    sink_findings,
    vision_head_finding,
)
from vlmfix.explanation.reading import Reader
from vlmfix.explanation.result import Explanation

_TOKENS = 2048  # in the caches of all rows that are read at a time, so that they stay small beside a model


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
    found: np.ndarray = (
        CaptionRows(reader.model, reader.inputs, plain.token_ids, tokens=_TOKENS).exact(places, lists).numpy()
    )
    return found
