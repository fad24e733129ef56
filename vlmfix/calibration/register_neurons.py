"""Finding the neurons of the vision encoder that make outlier patches, for test-time registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import PROMPT, Calibration, Progress, prompt_inputs
from vlmfix.engine.vision_encoder import VisionEncoder
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.vision.registers import Registers, check_encoder

READS = 2
"""How often each picture is read."""

_OUTLIER_STD = 3.0

# Of the median norm: below it a patch is in the tail of the others, however narrow their spread.
_OUTLIER_RATIO = 2.0

# Numbers of neurons that are tried.
_COUNTS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300)

# Share of the outliers that may be left, and the part of what random neurons leave.
_LEFT = 0.05
_LEFT_OF_RANDOM = 0.5

_BINS = 12


def calibrate_registers(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[ImageLike], progress: Progress
) -> Calibration:
    """Find the register neurons of a CLIP or SigLIP encoder (arXiv 2506.08010).

    Outliers are patches whose norm, where the projector reads, exceeds mean + 3 standard deviations over all
    pictures. Up to the layer in which most of them appear, neurons rank by their mean activation at the
    outliers. As many are listed as it takes until no tail is left, in steps from 1 to 300.

    This library's own: an outlier also has twice the median norm; "no tail" is 5 % of the outliers, on the
    half of the pictures on which the neurons were not ranked; and random neurons of the same layers must
    leave twice as many.

    Args:
        model: a stock model.
        processor: its processor.
        images: 100 or more.
        progress: called with the number of pictures just read; each is read `READS` times.

    Raises:
        UnsupportedError: the encoder is another one.
        ValueError: it has no register neurons, with what was measured.
    """
    check_encoder(model.config)
    encoder = VisionEncoder(model)
    reader = _Reader(model, processor, encoder)
    progress = progress or (lambda count: None)
    read = []
    for image in images:
        read.append(reader.norms(image))
        progress(1)
    norms = torch.cat([each.flatten(1) for each in read], dim=1)
    limits = torch.tensor([outlier_limit(layer) for layer in norms])
    last = norms[-1]
    outliers = [each[-1] > limits[-1] for each in read]
    halves = list(zip(images, outliers, strict=True))[::2], list(zip(images, outliers, strict=True))[1::2]
    counts = [sum(int(mask.sum()) for _, mask in half) for half in halves]
    if not all(counts):
        median = float(last.median())
        raise ValueError(
            f"no register neurons: of {last.numel()} patches of {len(images)} pictures {sum(counts)} are "
            f"outliers, and both halves need some; their norms have a median of {median:.1f} and a maximum "
            f"of {float(last.max()):.1f}, {float(last.max()) / median:.1f} times that, and outliers are "
            f"above {float(limits[-1]):.1f} (norms: {histogram(last)}); leave registers out on this model"
        )
    found = torch.cat([mask.flatten() for mask in outliers])
    shares = (norms[:, found] > limits[:, None]).float().mean(dim=1)
    top_layer = int((shares > 0.5).nonzero()[0])
    scores = []
    for image, mask in halves[0]:
        if bool(mask.any()):
            scores.append(reader.activations(image, mask, top_layer))
        progress(1)
    score = torch.stack(scores).mean(dim=0)
    units = score.shape[1]
    order = score.flatten().argsort(descending=True, stable=True).tolist()
    ranked = [divmod(number, units) for number in order[: max(_COUNTS)]]
    left = {0: counts[1]}
    for count in _COUNTS:
        if count <= len(ranked) and left[max(left)] > _LEFT * counts[1]:
            left[count] = reader.outliers_under(ranked[:count], halves[1], float(limits[-1]))
    kept = max(left)
    by_random = reader.outliers_under(_random_like(ranked[:kept], units), halves[1], float(limits[-1]))
    progress(len(halves[1]))
    if left[kept] > min(_LEFT * counts[1], _LEFT_OF_RANDOM * by_random):
        raise ValueError(
            f"no register neurons: without the {kept} neurons that fire most at outliers, {left[kept]} of "
            f"{counts[1]} outliers are left on other pictures, and {by_random} without random neurons of the "
            f"same layers (outliers left by neurons: {left}; norms: {histogram(last)}); give more pictures, "
            "or leave registers out on this model"
        )
    return Calibration(
        {"register_neurons": [list(pair) for pair in ranked[:kept]]},
        f"{len(images)} pictures with {sum(counts)} of {last.numel()} patches above a norm of "
        f"{float(limits[-1]):.4g}, which appear in encoder layer {top_layer}: neurons that fire most there; "
        f"on the other half of the pictures they leave {left[kept]} of {counts[1]} outliers, random neurons "
        f"{by_random}; norms {histogram(last)}",
        {
            "outliers": f"{sum(counts)} of {last.numel()} patches",
            "norm threshold": round(float(limits[-1]), 2),
            "top layer": top_layer,
            "neurons": kept,
            "outliers left by number of neurons": left,
            "outliers left by random neurons": by_random,
            "norms": histogram(last),
        },
    )


def outlier_limit(norms: Tensor) -> float:
    """The norm above which a patch is an outlier: mean + 3 standard deviations, and twice the median.

    Args:
        norms: of patches, any shape.
    """
    spread = float(norms.mean() + _OUTLIER_STD * norms.std())
    return max(spread, _OUTLIER_RATIO * float(norms.median()))


def histogram(norms: Tensor) -> str:
    """How many norms lie in each of 12 equal ranges, as text."""
    low, high = float(norms.min()), float(norms.max())
    counts = torch.histc(norms.float(), _BINS, low, high).long().tolist()
    return f"{low:.1f} to {high:.1f} in {_BINS} equal bins: {' '.join(map(str, counts))}"


def _random_like(neurons: Sequence[tuple[int, int]], units: int) -> list[tuple[int, int]]:
    """As many other neurons of the same layers."""
    generator = torch.Generator().manual_seed(0)
    found: set[tuple[int, int]] = set()
    for layer, _ in neurons:
        taken = {unit for own, unit in (*neurons, *found) if own == layer}
        others = [unit for unit in range(units) if unit not in taken]
        if others:
            found.add((layer, others[int(torch.randint(len(others), (1,), generator=generator))]))
    return sorted(found)


class _Reader:
    """The vision encoder at work on single pictures.

    Args:
        model: a stock model.
        processor: its processor.
        encoder: of the model.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, encoder: VisionEncoder) -> None:
        self._model, self._processor, self._encoder = model, processor, encoder
        self._first = int(encoder.has_class_token)

    def norms(self, image: ImageLike) -> Tensor:
        """Norms of the patches after each layer that runs for the projector, `(layers, tiles, patches)`."""
        seen: list[Tensor] = []

        def see(module: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            seen.append(states[:, self._first :].float().norm(dim=-1).cpu())

        layers = self._encoder.layers[: self._encoder.last_layer + 1]
        self._run(image, [layer.register_forward_hook(see) for layer in layers])
        return torch.stack(seen)

    def activations(self, image: ImageLike, outliers: Tensor, top_layer: int) -> Tensor:
        """Mean activation of the neurons at the outliers of a picture, `(layers, units)`.

        Args:
            outliers: `(tiles, patches)` bool.
            top_layer: the last one that is looked at.
        """
        seen: list[Tensor] = []

        def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            states = args[0][:, self._first :]
            seen.append(states[outliers.to(states.device)].float().mean(dim=0).cpu())

        parts = self._encoder.down_projections[: top_layer + 1]
        self._run(image, [part.register_forward_pre_hook(see) for part in parts])
        return torch.stack(seen)

    def outliers_under(
        self,
        neurons: Sequence[tuple[int, int]],
        pictures: Sequence[tuple[ImageLike, Tensor]],
        limit: float,
    ) -> int:
        """How many patches of the pictures are above a norm when these neurons are moved to a register."""
        method = Registers(neurons=tuple(neurons))
        count = 0

        def see(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal count
            states = output[0] if isinstance(output, tuple) else output
            count += int((states[:, self._first : -1].float().norm(dim=-1) > limit).sum())

        for image, _ in pictures:
            last = self._encoder.layers[self._encoder.last_layer].register_forward_hook(see)
            self._run(image, [*method.hook_encoder(self._encoder), last])
        return count

    def _run(self, image: ImageLike, hooks: Sequence[RemovableHandle]) -> None:
        """Encode a picture under hooks, which are gone afterwards."""
        core: Any = self._model.base_model
        try:
            pixels = prompt_inputs(self._model, self._processor, image, PROMPT)["pixel_values"]
            with torch.no_grad():
                core.vision_tower(pixels.flatten(0, -4))
        finally:
            for hook in hooks:
                hook.remove()
