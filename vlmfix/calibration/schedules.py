"""Finding where pruning should happen, and how much may stay, for AdaptInfer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import PROMPT, Calibration, Progress, prompt_inputs
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.base import Method
from vlmfix.methods.pruning.base import mean_tokens

# Shares of the image tokens left after the three layers of LLaVA-1.5-7B at budget 64.
_KEPT_SHARES = (133 / 576, 27 / 576, 3 / 576)

# Image tokens whose curves are searched for change points: 58 of 576.
_CURVES = 0.1

_BUDGETS = (11, 22, 33, 50, 70)


def calibrate_adaptinfer(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[ImageLike], progress: Progress
) -> Calibration:
    """Find schedules for AdaptInfer (arXiv 2508.06084): layers where attention to the image changes.

    Of each prompt, the tenth of the image tokens with the largest attention gives curves of cumulative
    attention over the layers; each has one change point. The layers where these are densest are pruned. How
    many tokens stay is this library's own rule: the shares of LLaVA-1.5-7B, scaled to a mean share over the
    layers.
    """
    layers = model.config.get_text_config().num_hidden_layers
    found: Counter[int] = Counter()
    for image in images:
        observer = _TextToImage()
        with observer(model), torch.no_grad():
            model(**prompt_inputs(model, processor, image, PROMPT))
        attention = torch.stack([seen.cpu() for seen in observer.seen])
        count = max(1, round(_CURVES * attention.shape[1]))
        chosen = attention.sum(dim=0).topk(count).indices
        curves = attention[:, chosen].cumsum(dim=0).T.double().numpy()
        found.update(change_point(curve) - 1 for curve in curves)
        if progress is not None:
            progress(1)
    prune_layers = dense_layers(found, layers)
    schedules = {}
    for budget in _BUDGETS:
        ratios = kept_ratios(budget / 100, layers, prune_layers)
        if ratios is not None:
            schedules[f"{budget}%"] = {"prune_layers": list(prune_layers), "kept_ratios": ratios}
    if not schedules:
        raise ValueError(
            f"attention to the image changes at layers {prune_layers} of {layers}, too late for a mean of "
            f"{_BUDGETS[-1]} % of the image tokens per layer; this model has no schedule worth having"
        )
    histogram = {layer: found[layer] for layer in sorted(found)}
    return Calibration(
        {"adaptinfer_schedules": schedules},
        f"{len(images)} image prompts: densest change points of cumulative attention to the image; budgets "
        "are mean shares of the image tokens per layer",
        {"change points by layer": histogram, "prune layers": prune_layers, "budgets": list(schedules)},
    )


@dataclass(frozen=True, kw_only=True)
class _TextToImage(Method):
    """Attention of the text after the image to each image token, layer by layer, for one prompt."""

    edits: ClassVar = False

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return context.layout.rows_after_last_image

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        image = context.layout.image_tokens[0].to(weights.device)
        self.seen.append(weights[0].mean(dim=(0, 1))[image])


def change_point(curve: np.ndarray) -> int:
    """Where the second of two segments starts, `curve` `(layers,)`; least squares around the segment means.

    Raises:
        ImportError: ruptures is not installed.
        ValueError: fewer than four layers, where there are no two segments of two.
    """
    try:
        import ruptures
    except ImportError as error:
        raise ImportError(
            "calibrating AdaptInfer needs ruptures: pip install 'vlmfix[adaptinfer]'"
        ) from error
    if len(curve) < 4:
        raise ValueError(f"the model has {len(curve)} layers; change points need 4 or more")
    start, _ = ruptures.Dynp(model="l2", min_size=2, jump=1).fit(curve).predict(n_bkps=1)
    return int(start)


def dense_layers(counts: Counter[int], num_layers: int, *, pruning_stages: int = 3) -> list[int]:
    """The most frequent layers that lie an eighth of the depth, and at least two layers, apart; ascending."""
    apart = max(2, num_layers // 8)
    chosen: list[int] = []
    for layer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if layer <= num_layers - 2 and all(abs(layer - other) >= apart for other in chosen):
            chosen.append(layer)
    return sorted(chosen[:pruning_stages])


def kept_ratios(mean_share: float, num_layers: int, prune_layers: Sequence[int]) -> list[float] | None:
    """Shares of the tokens still there that stay after each layer, for a mean share over all layers.

    The shares of LLaVA-1.5-7B at budget 64, scaled by one factor and never above what is there.

    Returns:
        One share a layer; None if the layers come too late for this mean, or it needs no pruning.
    """
    tokens = 10_000

    def kept(factor: float) -> list[float]:
        return [min(1.0, factor * share) * tokens for share in _KEPT_SHARES[: len(prune_layers)]]

    def mean(factor: float) -> float:
        return mean_tokens(tokens, num_layers, prune_layers, [round(each) for each in kept(factor)]) / tokens

    low, high = 0.0, 1 / _KEPT_SHARES[len(prune_layers) - 1]
    if not mean(low) < mean_share < mean(high):
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < mean_share else (low, middle)
    left = [float(tokens), *kept(high)]
    return [round(after / before, 4) for before, after in pairwise(left)]
