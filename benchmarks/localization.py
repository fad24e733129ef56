"""How well the maps that methods rely on, and those of explanations, point at objects, on an embedded model.

    python -m benchmarks.localization --model tiny-llava
    python -m benchmarks.localization --model tiny-llava --captions

For yes/no questions: the probability that a map is higher on an image token that shows an object than on one
that does not (area under the ROC curve; 0.5 is chance), and its mean over the questions with a 95 % interval
clustered by scene. The object is the one asked about, where it is in the scene; where it is not, it is the
partner that makes the model say yes. A method whose map is at chance cannot help; one whose map points at the
partner cannot help with these questions.

For captions: maps of `vlmfix explain` of the words that name objects in the scene, see
`benchmarks.caption_maps`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

import vlmfix
from benchmarks.answers import Split
from benchmarks.bootstrap import Ratio, compare, resample
from benchmarks.caption_maps import measure_maps, tables
from vlmfix.engine import tokens
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.vision_attention import EncoderTap
from vlmfix.evaluation.datasets.synthetic.language import with_article
from vlmfix.evaluation.datasets.synthetic.scenes import PARTNERS
from vlmfix.inference.chat import prepare
from vlmfix.methods.attention.gift import GIFT, gaze_shifts, saliency_map
from vlmfix.models.image_grid.families import place, token_grids

KINDS = ("partner of an absent object", "object asked about")
"""Whose place in the image is looked for; indexed by whether the object asked about is there."""

INSTRUCTION = vlmfix.CARVE().general_instruction


@dataclass(frozen=True, kw_only=True)
class _Maps(GIFT):
    """Of every layer of the prefill of one prompt: map of gaze shifts, and attention of the last row."""

    edits: ClassVar = False
    identity_parameters: ClassVar = {}

    seen: dict[str, list[Tensor]] = field(default_factory=dict, compare=False)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        wanted = self._reading_rows(context, layer)
        return context.union([wanted, context.layout.last_row])

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        rows = self.rows(context, layer)
        assert rows is not None
        index = rows.index
        follows = torch.cat([index.new_zeros(1), index.diff()]) == 1
        words = context.state[self, "words"][:, index] & follows
        image = context.layout.image_tokens
        saliency = saliency_map(gaze_shifts(weights, weights.roll(1, dims=2)), words, image)
        self.seen.setdefault("gaze shifts", []).append(saliency[image])
        self.seen.setdefault("attention", []).append(weights[0, :, -1].mean(dim=0)[image[0]])

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return False


def maps(
    model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, prompt: str
) -> dict[str, Tensor]:
    """Maps over the image tokens of one prompt, by name: `(layers, tokens)`, or `(1, tokens)`."""
    inputs = prepare([[image]], [prompt], processor).to(model.device, dtype=model.dtype)
    observer = _Maps(saliency_layer=0, enhanced_layers=(0, 0))
    tap = EncoderTap(model)
    tap.install()
    try:
        with observer(model, processor), torch.no_grad():
            model(**inputs)
        (block,) = tap.images[0].blocks
    finally:
        tap.remove()
    received = block.attention.sum(dim=0)
    encoder = torch.zeros(len(received)).scatter(0, block.places, received)
    return {name: torch.stack(each) for name, each in observer.seen.items()} | {
        "vision encoder": encoder[None]
    }


def shown(model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, boxes: list[Any]) -> Tensor:
    """Which image tokens show at least a quarter of their area inside one of the boxes, `(tokens,)` bool.

    Args:
        boxes: left, top, width and height in pixels.
    """
    inputs = prepare([[image]], ["?"], processor)
    image_tokens = inputs["input_ids"] == tokens.image_token(model.config)
    ((located,),) = token_grids(model.config, inputs, image_tokens)
    (located,) = place([located], model.config, processor.image_processor, [image.size])
    covered = np.zeros((image.height, image.width))
    for left, top, width, height in boxes:
        covered[top : top + height, left : left + width] = 1
    result = torch.zeros(located.count, dtype=torch.bool)
    for grid in located.grids:
        assert grid.box is not None
        x0, y0, x1, y1 = grid.box
        across = np.linspace(x0, x1, grid.columns + 1).round().astype(int)
        down = np.linspace(y0, y1, grid.rows + 1).round().astype(int)
        for row, offsets in enumerate(grid.offsets().tolist()):
            for column, offset in enumerate(offsets):
                cell = covered[down[row] : down[row + 1], across[column] : across[column + 1]]
                result[offset] = bool(cell.size and cell.mean() >= 0.25)
    return result


def area_under_curve(values: Tensor, positive: Tensor) -> float:
    """Probability that a value of a positive is above one of a negative; ties count half."""
    above = values[positive][:, None] - values[~positive][None]
    return float((above.sign() + 1).mean() / 2)


def measure(
    model: PreTrainedModel, processor: ProcessorMixin, split: Split
) -> Iterator[tuple[int, str, str, int, float]]:
    """For every question: scene, kind of object, name of a map, layer, area under the curve."""
    instruction: dict[int, dict[str, Tensor]] = {}
    for scene, category, present in track(split.items, description="maps", transient=True):
        image = split.images[scene]
        shown_category = category if present else PARTNERS[category]
        boxes = [item.box for item in split.scenes[scene].categories()[shown_category]]
        positive = shown(model, processor, image, boxes)
        if not positive.any() or positive.all():
            continue
        own = maps(model, processor, image, f"Is there {with_article(category)} in the image?")
        if scene not in instruction:
            instruction = {scene: maps(model, processor, image, INSTRUCTION)}
        own["attention / instruction's"] = own["attention"] / (instruction[scene]["attention"] + 1e-8)
        for name, layers in own.items():
            for layer, values in enumerate(layers.cpu()):
                yield scene, KINDS[present], name, layer, area_under_curve(values, positive)


def main(
    model: Annotated[str, typer.Option(help="Embedded model, or a folder.")] = "tiny-llava",
    scenes: Annotated[int, typer.Option(min=1, help="Scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="World of the scenes.")] = 770_002,
    captions: Annotated[
        bool, typer.Option("--captions", help="Maps of the words of captions, by all their figures.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Of deletion and insertion, for captions.")] = 16,
) -> None:
    """Print the figures of every map as Markdown tables."""
    loaded = vlmfix.load(model, dtype="float32")
    split = Split("localization", seed, scenes)
    if captions:
        for line in tables(*measure_maps(*loaded, split, steps), scenes):
            typer.echo(line)
        return
    sums: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for scene, kind, name, layer, area in measure(*loaded, split):
        row = sums.setdefault((name, layer), {each: np.zeros((2, scenes)) for each in KINDS})
        row[kind][:, scene] += (area, 1)
    weights = resample(scenes)
    typer.echo(f"| map | layer | {' | '.join(KINDS)} |\n| --- | --- | --- | --- |")
    for (name, layer), row in sums.items():
        cells = []
        for areas, counts in row.values():
            estimate = compare(Ratio(areas, counts), Ratio(counts / 2, counts), weights)
            low, high = (0.5 + bound for bound in (estimate.low, estimate.high))
            cells.append(f"{estimate.value:.3f} ({low:.3f} to {high:.3f})")
        typer.echo(f"| {name} | {layer} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
