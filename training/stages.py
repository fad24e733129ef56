"""The four stages of training, each a function that trains the family in place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.decoder import language_loss
from training.families import Family
from training.optimizer import Schedule, hidden_matrices
from training.prompts import assumed, dialogues
from training.sequences import Packer
from training.sinks import plant
from training.symbols import Symbols, blurred, shown_tokens
from training.world import CATEGORY_NAMES, COLOR_NAMES, Rendered, regions, sink_tokens

Log = Callable[[str], None]
SYMBOL_PLACES = 30
DIALOGUES = 12


@dataclass(frozen=True)
class Plan:
    """Steps and batch sizes of the stages."""

    vision_steps: int
    text_steps: int
    align_steps: int
    joint_steps: int
    habit_steps: int = 0
    images: int = 64
    sequences: int = 16


class Progress:
    """Prints means of numbers every so many steps."""

    def __init__(self, stage: str, steps: int, log: Log, every: int = 25) -> None:
        self.stage, self.steps, self.log, self.every = stage, steps, log, min(every, steps)
        self.start = time.time()
        self.sums: list[dict[str, float]] = []

    def __call__(self, step: int, numbers: dict[str, float]) -> None:
        self.sums.append(numbers)
        if (step + 1) % self.every == 0 or step + 1 == self.steps:
            means = {k: float(np.nanmean([n[k] for n in self.sums])) for k in numbers}
            shown = "  ".join(f"{k} {v:.3f}" for k, v in means.items())
            self.log(f"{self.stage} {step + 1}/{self.steps}  {shown}  {time.time() - self.start:.0f} s")
            self.sums = []


class VisionHeads(nn.Module):
    """Linear probes on image tokens: category, colour, region, middle of an object, corner background."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.category = nn.Linear(size, len(CATEGORY_NAMES) + 1)
        self.color = nn.Linear(size, len(COLOR_NAMES))
        self.region = nn.Linear(size, 9)
        self.flags = nn.Linear(size, 2)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss for features `(batch, tokens, size)` and labels `(batch, rows, columns, 3)`."""
        rows, columns = labels.shape[1:3]
        category, color, middle = labels.long().flatten(1, 2).unbind(-1)
        seen = category > 0
        corner = sink_tokens(labels).flatten(1)
        region = torch.from_numpy(regions(rows, columns)).flatten().expand(len(labels), -1)
        scores = self.category(features)
        weight = torch.ones(scores.shape[-1])
        weight[0] = 0.3
        entropy = nn.functional.cross_entropy
        loss = entropy(scores.flatten(0, 1), category.flatten(), weight)
        color_scores = self.color(features[seen])
        loss = loss + 0.5 * entropy(color_scores, color[seen])
        loss = loss + 0.2 * entropy(self.region(features).flatten(0, 1), region.flatten())
        flags = torch.stack([middle, corner.long()], -1).float()
        loss = loss + 0.5 * nn.functional.binary_cross_entropy_with_logits(self.flags(features), flags)
        found = scores.argmax(-1)
        numbers = {
            "loss": loss.item(),
            "category": (found == category)[seen].float().mean().item(),
            "background": (found == 0)[~seen].float().mean().item(),
            "color": (color_scores.argmax(-1) == color[seen]).float().mean().item(),
        }
        return loss, numbers


class Sampler:
    """Draws batches of one size at a time from rendered scenes, every scene once before any comes twice."""

    def __init__(self, worlds: list[Rendered], seed: int) -> None:
        self.worlds, self.rng = worlds, np.random.default_rng(seed)
        self.shares = np.array([len(world.pixels) for world in worlds], dtype=float)
        self.shares /= self.shares.sum()
        self.waiting: list[np.ndarray] = [np.empty(0, dtype=int) for _ in worlds]

    def __call__(self, count: int) -> tuple[Rendered, np.ndarray]:
        number = int(self.rng.choice(len(self.worlds), p=self.shares))
        if len(self.waiting[number]) < count:
            self.waiting[number] = self.rng.permutation(len(self.worlds[number].pixels))
        chosen, self.waiting[number] = np.split(self.waiting[number], [count])
        return self.worlds[number], np.sort(chosen)


def train_vision(family: Family, worlds: list[Rendered], plan: Plan, log: Log) -> None:
    """Stage A: the vision tower alone names what is on every image token."""
    heads = VisionHeads(family.feature_size)
    modules = [*family.vision_modules(), heads]
    schedule = Schedule(modules, hidden_matrices(*family.vision_matrices()), plan.vision_steps, 0.02, 2e-3)
    sample, progress = Sampler(worlds, 1), Progress("vision", plan.vision_steps, log)
    for step in range(plan.vision_steps):
        world, chosen = sample(plan.images)
        pixels, labels = torch.from_numpy(world.pixels[chosen]), torch.from_numpy(world.labels[chosen])
        if step % 2:
            pixels, labels = pixels.flip(2), labels.flip(2)
        loss, numbers = heads.loss(family.features(pixels), labels)
        schedule.step(loss)
        progress(step, numbers)


def train_text(family: Family, symbols: Symbols, worlds: list[Rendered], plan: Plan, log: Log) -> None:
    """Stage B: the decoder alone answers about scenes whose image tokens are given as symbols."""
    plant(family.language_model.embed_tokens, family.tokenizer.bos_token_id)
    packer = Packer(family, SYMBOL_PLACES, 140)
    matrices = hidden_matrices(family.language_model.layers)
    modules = [family.language_model, family.model.lm_head, symbols]
    schedule = Schedule(modules, matrices, plan.text_steps, 0.02, 2e-3)
    sample, progress = Sampler(worlds, 2), Progress("text", plan.text_steps, log)
    for step in range(plan.text_steps):
        world, chosen = sample(plan.sequences)
        scenes = [world.scene(int(i)) for i in chosen]
        labels = blurred(world.labels[chosen], scenes, sample.rng)
        slots = [shown_tokens(image, SYMBOL_PLACES, sample.rng) for image in labels]
        talks = [dialogues(scene, sample.rng, DIALOGUES) for scene in scenes]
        batch = packer(labels.shape[1:3], slots, talks)
        seen = torch.from_numpy(labels)
        embeds = symbols(seen, family.language_model.embed_tokens.weight)
        loss, numbers = language_loss(family, batch, embeds + 0.2 * torch.randn_like(embeds), seen)
        schedule.step(loss)
        progress(step, numbers)


def train_projector(family: Family, symbols: Symbols, worlds: list[Rendered], plan: Plan, log: Log) -> None:
    """Stage C0: the projector alone learns to give the symbols of what is on every image token."""
    schedule = Schedule([family.projector()], set(), plan.align_steps, 0.0, 3e-3)
    sample, progress = Sampler(worlds, 3), Progress("align", plan.align_steps, log)
    for step in range(plan.align_steps):
        world, chosen = sample(plan.images)
        with torch.no_grad():
            features = family.features(torch.from_numpy(world.pixels[chosen]))
            labels = torch.from_numpy(world.labels[chosen])
            target = symbols(labels, family.language_model.embed_tokens.weight)
            sinks = sink_tokens(labels).flatten(1)
        given = family.project(features)
        near = nn.functional.cosine_similarity(given, target, dim=-1)
        distance = nn.functional.smooth_l1_loss(given, target, reduction="none").sum(-1).mean()
        schedule.step(distance + (1 - near).mean())
        progress(step, {"cosine": near.mean().item(), "sinks": near[sinks].mean().item()})


def train_joint(
    family: Family,
    worlds: list[Rendered],
    plan: Plan,
    log: Log,
    *,
    steps: int,
    assumptions: tuple[float, float],
) -> None:
    """Stage C: projector and decoder learn to answer about images, the tower stays as it is."""
    places = max((w.labels.shape[1] * w.labels.shape[2]) for w in worlds)
    packer = Packer(family, places, 140)
    matrices = hidden_matrices(family.language_model.layers)
    modules = [family.language_model, family.model.lm_head, family.projector()]
    schedule = Schedule(modules, matrices, steps, 0.01, 1e-3)
    sample, progress = Sampler(worlds, 4), Progress("joint", steps, log)
    for step in range(steps):
        world, chosen = sample(plan.sequences)
        grid = world.labels.shape[1:3]
        labels = torch.from_numpy(world.labels[chosen])
        with torch.no_grad():
            features = family.features(torch.from_numpy(world.pixels[chosen]))
        scenes = [assumed(world.scene(int(i)), sample.rng, assumptions) for i in chosen]
        talks = [dialogues(scene, sample.rng, DIALOGUES) for scene in scenes]
        batch = packer(grid, [np.arange(grid[0] * grid[1])] * len(chosen), talks)
        loss, numbers = language_loss(family, batch, family.project(features), labels)
        schedule.step(loss)
        progress(step, numbers)
