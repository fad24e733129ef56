"""Refinement of text embeddings by the image, and what it does to an embedded model:
`python -m training.refine tiny-llava --output DIR`.

After VisAlign (arXiv 2511.05017), which mixes average-pooled image features into text embeddings, so that the
decoder leans less on language alone. A reconstruction from its idea: here the model stays as it is, and one
matrix beside it learns from truthful dialogues, so that it costs minutes. The same matrix without the image
is the control: what it gains is the gain of further training on true captions. What both gain is in
docs/guide/refined_embeddings.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vlmfix
from training.decoder import answer_loss, embed
from training.families import Family
from training.optimizer import Schedule
from training.prompts import dialogues
from training.report import Speaker, measure
from training.sequences import Batch, Packer
from training.stages import DIALOGUES, Progress, Sampler
from training.train import FAMILIES, worlds_of
from training.world import Rendered
from vlmfix.engine.context import DecodeContext
from vlmfix.methods.steering.base import StreamEdit
from vlmfix.models.structure import StreamSite

STEPS, SEQUENCES, PLACES = 200, 16, 140
RATE = 2e-3
TEST_SCENES = 300


class Refinement(nn.Module):
    """Adds to text embeddings a linear map of themselves and of the mean image token; nothing at first.

    Args:
        hidden: size of an embedding.
        sees_image: whether the mean image token is there; without it, it is the control.
    """

    def __init__(self, hidden: int, *, sees_image: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * hidden, hidden)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)
        self.sees_image = sees_image

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Refined embeddings.

        Args:
            text: `(batch, tokens, hidden)`.
            image: mean image token, `(batch, hidden)`.
        """
        shown = image[:, None].expand_as(text) * self.sees_image
        refined: Tensor = text + self.mix(torch.cat([text, shown], dim=-1))
        return refined


def mean_token(embeddings: Tensor, image_tokens: Tensor) -> Tensor:
    """Mean of the image tokens of each sequence, `(batch, hidden)`; 0 without any.

    Args:
        embeddings: `(batch, tokens, hidden)`.
        image_tokens: `(batch, tokens)` bool.
    """
    chosen = image_tokens[..., None].to(embeddings)
    return (embeddings * chosen).sum(dim=1) / chosen.sum(dim=1).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class RefinedEmbeddings(StreamEdit):
    """Refines the embeddings of all text after the last image, in whatever `generate` decodes.

    Args:
        refinement: trained.
    """

    refinement: Refinement = field(repr=False, compare=False)

    info: ClassVar = vlmfix.MethodInfo(
        stage="steering",
        changes="text embeddings: what the image shows on average is mixed in",
        where="text after the image and new tokens, before the first layer",
        forwards=1.0,
        provenance="reconstruction",
        paper="2511.05017",
    )
    stream_sites: ClassVar = ("enter",)

    def edits_layer(self, layer: int) -> bool:
        return layer == 0

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        layout, new = context.layout, states.shape[1]
        reads_prompt = not context.reads_on(new)
        if reads_prompt:
            image = layout.image_tokens.to(states.device)
            context.state[self, "image"] = mean_token(states[:, : layout.length], image)
        with torch.no_grad():
            after = self.refinement(states, context.state[self, "image"]).to(states.dtype)
        if reads_prompt:
            rows = nn.functional.pad(layout.after_last_image, (0, new - layout.length), value=True)
            after = torch.where(rows.to(states.device)[..., None], after, states)
        return self.edited(context, layer, states, after)


def hidden_states(family: Family, refinement: Refinement, batch: Batch, image_embeds: Tensor) -> Tensor:
    """Normed last hidden states `(batch, sequence, hidden)` of packed dialogues under a refinement."""
    embeds = embed(family, batch, image_embeds)
    shown = batch.slots >= 0
    rows = (batch.segment >= 0) & (shown.flip(1).cumsum(1).flip(1) == 0)  # after the image
    refined = refinement(embeds, mean_token(embeds, shown))
    embeds = torch.where(rows[..., None], refined, embeds)
    cos, sin = family.rotary(embeds, batch.positions)
    mask = batch.attention_mask()
    hidden = embeds
    for layer in family.language_model.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=(cos, sin))
    normed: Tensor = family.language_model.norm(hidden)
    return normed


def train(
    family: Family,
    refinement: Refinement,
    worlds: list[Rendered],
    steps: int,
    log: Callable[[str], None],
    sequences: int = SEQUENCES,
) -> None:
    """Train a refinement on truthful dialogues about training scenes; the model stays as it is.

    Args:
        sequences: scenes in a batch.
    """
    family.model.requires_grad_(False)
    places = max(world.labels.shape[1] * world.labels.shape[2] for world in worlds)
    packer = Packer(family, places, PLACES)
    schedule = Schedule([refinement], set(), steps, 0.0, RATE)
    sample, progress = Sampler(worlds, 5), Progress("refine", steps, log)
    for step in range(steps):
        world, chosen = sample(sequences)
        grid = world.labels.shape[1:3]
        with torch.no_grad():
            image_embeds = family.project(family.features(torch.from_numpy(world.pixels[chosen])))
        talks = [dialogues(world.scene(int(i)), sample.rng, DIALOGUES) for i in chosen]
        batch = packer(grid, [np.arange(grid[0] * grid[1])] * len(chosen), talks)
        hidden = hidden_states(family, refinement, batch, image_embeds)
        loss, numbers = answer_loss(family, batch, hidden)
        schedule.step(loss)
        progress(step, numbers)


def table(columns: dict[str, dict[str, float]]) -> str:
    """Numbers by name as a Markdown table, a column a model."""
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name in next(iter(columns.values())):
        lines.append(f"| {name} | {' | '.join(f'{numbers[name]:.3f}' for numbers in columns.values())} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(FAMILIES))
    parser.add_argument("--output", type=Path, required=True, help="folder of the refinements and figures")
    parser.add_argument("--work", type=Path, default=Path("training-work"), help="scenes")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--count", type=int, default=TEST_SCENES, help="test scenes")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    arguments.output.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[arguments.model]()
    speaker = Speaker(arguments.model)
    family.model.load_state_dict(speaker.model.state_dict())
    worlds = worlds_of(family, arguments.work / "scenes", arguments.steps * SEQUENCES)
    sizes = tuple(family.sizes[:1])
    columns = {"before": measure(speaker, arguments.count, sizes)}
    for name, sees_image in (("refined", True), ("refined without the image", False)):
        torch.manual_seed(0)
        start = time.time()
        refinement = Refinement(family.language_model.config.hidden_size, sees_image=sees_image)
        train(family, refinement, worlds, arguments.steps, partial(print, flush=True))
        print(f"{name}: {(time.time() - start) / 60:.1f} minutes", flush=True)
        save_file(refinement.state_dict(), arguments.output / f"{name.replace(' ', '-')}.safetensors")
        with RefinedEmbeddings(refinement=refinement)(speaker.model):
            columns[name] = measure(speaker, arguments.count, sizes)
    print(table(columns))
    (arguments.output / "figures.json").write_text(json.dumps(columns, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
