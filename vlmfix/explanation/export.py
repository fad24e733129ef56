"""The numbers of an explanation as JSON, and its maps as bytes for the page."""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import Any

import numpy as np

from vlmfix.explanation.answers import ExplainedAnswer
from vlmfix.explanation.arrays import ExplanationArrays
from vlmfix.explanation.formulas import GROUPS

_DIGITS = 6


def rounded(value: Any) -> Any:
    """Numbers with six significant digits, arrays as lists; what is not finite is null."""
    if isinstance(value, np.ndarray):
        return rounded(value.tolist())
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return int(value) if isinstance(value, np.integer) else value


def packed(values: np.ndarray) -> dict[str, Any]:
    """A map as bytes in base64: from 0 to its highest value, or, where it goes below 0, from minus to plus
    its largest size."""
    signed = float(values.min()) < 0
    bound = float(np.abs(values).max())
    shares = values / (bound or 1.0)
    codes = np.rint((shares + 1) * 127.5 if signed else shares * 255).astype(np.uint8)
    return {"bytes": base64.b64encode(codes.tobytes()).decode(), "bound": rounded(bound), "signed": signed}


def numbers(explanation: ExplanationArrays) -> dict[str, Any]:
    """Everything that the page shows, without the pictures."""
    told, sinks, words = explanation, explanation.sinks, explanation.plain.words
    found: dict[str, Any] = {
        "model": told.model,
        "prompt": told.prompt,
        "size": told.picture.size,
        "cells": told.cells.shape,
        "groups": GROUPS,
        "layers": told.layers,
        "band": told.band,
        "word": told.word,
        told.plain.label: _answer(told.plain),
        "cuts": dict(told.cuts),
        "sliding cut": told.sliding,
        "window": told.window,
        "sinks": {
            "threshold": sinks.threshold,
            "dimensions": sinks.dimensions,
            "visual sinks": sinks.is_sink.sum(axis=1),
            "first token": sinks.first,
            "dimension": sinks.dimension,
            "norm of the first token": sinks.first_norm,
            "norm of image tokens": sinks.image_norm,
        },
        "head divergence": told.divergence,
        "maps": {name: told.values(name, told.word) for name in told.maps},
        "judged": {
            f"{words[word].text}#{word}": {
                name: {key: tuple(each) for key, each in own.items()} for name, own in maps.items()
            }
            for word, maps in told.judged.items()
        },
        "findings": [each._asdict() for each in told.findings],
        "left out": dict(told.left_out),
    }
    if told.method is not None:
        found |= {
            "method": told.method_name,
            "parameters": {name: dict(each) for name, each in told.parameters.items()},
            "activity": dict(told.activity),
            "under method": _answer(told.method),
        }
    if told.compared is not None:
        own = told.compared
        parting = own.parting
        found["compared"] = {
            "kl": own.divergence,
            "plain answer under method": own.plain_under_method,
            "method's answer without it": own.method_under_plain,
            "parting": None if parting is None else parting._asdict() | {"choice": parting.choice._asdict()},
        }
    if told.faithfulness is not None:
        tested = told.faithfulness
        found["faithfulness"] = dataclasses.asdict(tested) | {
            "verdicts": {name: tested.verdict(name) for name in told.maps}
        }
    cleaned: dict[str, Any] = rounded(found)
    return cleaned


def _answer(told: ExplainedAnswer) -> dict[str, Any]:
    return {
        "text": told.text,
        "tokens": told.token_ids,
        "words": [{"text": each.text, "tokens": each.tokens} for each in told.words],
        "log p": told.log_p,
        "entropy": told.entropy,
        "margin": told.margin,
        "image gain": told.image_gain,
        "shares": told.shares,
        "objects": None if told.named is None else [each._asdict() for each in told.named],
    }
