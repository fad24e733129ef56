"""Train one of the embedded models from scratch: `python -m training.train tiny-llava --output DIR`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from training.families import Family
from training.llava import TinyLlava
from training.prompts import ASSUMED, ASSUMED_MORE
from training.qwen import TinyQwen
from training.stages import Plan, train_joint, train_projector, train_text, train_vision
from training.symbols import Symbols
from training.world import Rendered, rendered

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (TinyLlava, TinyQwen)}
PLANS = {
    "tiny-llava": Plan(vision_steps=1000, text_steps=400, align_steps=150, joint_steps=550),
    "tiny-qwen2.5-vl": Plan(
        vision_steps=800, text_steps=320, align_steps=150, joint_steps=450, habit_steps=220
    ),
}
SMOKE_PLAN = Plan(
    vision_steps=4, text_steps=4, align_steps=3, joint_steps=4, habit_steps=2, images=16, sequences=4
)
SCENES = 36_000


class Run:
    """A folder with a log and a safetensors file per finished stage: a killed run goes on from the last."""

    def __init__(self, folder: Path, family: Family) -> None:
        self.folder, self.family = folder, family
        self.symbols = Symbols(family)
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, line: str) -> None:
        print(line, flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self, stage: str) -> None:
        state = {f"model.{name}": tensor for name, tensor in self.family.model.state_dict().items()}
        state |= {f"symbols.{name}": tensor for name, tensor in self.symbols.state_dict().items()}
        save_file(
            {name: tensor.clone() for name, tensor in state.items()}, self.folder / f"{stage}.safetensors"
        )

    def load(self, stage: str) -> None:
        state = load_file(self.folder / f"{stage}.safetensors")
        for prefix, module in (("model.", self.family.model), ("symbols.", self.symbols)):
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )

    def stage(self, name: str, train: Callable[[], None]) -> None:
        if (self.folder / f"{name}.safetensors").exists():
            self.log(f"{name}: already done")
            self.load(name)
            return
        start = time.time()
        train()
        self.save(name)
        self.log(f"{name}: {(time.time() - start) / 60:.1f} minutes")


def train(name: str, output: Path, work: Path, *, smoke: bool = False) -> None:
    """Train a model through all stages and write its folder; `work` holds scenes and finished stages."""
    torch.manual_seed(0)
    family = FAMILIES[name]()
    plan, scenes = (SMOKE_PLAN, 256) if smoke else (PLANS[name], SCENES)
    run = Run(work / (name + "-smoke" * smoke), family)
    start = time.time()
    worlds = worlds_of(family, work / "scenes", scenes)
    run.log(f"scenes: {(time.time() - start) / 60:.1f} minutes")
    run.stage("text", lambda: train_text(family, run.symbols, worlds, plan, run.log))
    run.stage("vision", lambda: train_vision(family, worlds, plan, run.log))
    run.stage("align", lambda: train_projector(family, run.symbols, worlds, plan, run.log))
    for stage, steps, assumptions in (
        ("joint", plan.joint_steps, ASSUMED),
        ("habit", plan.habit_steps, ASSUMED_MORE),
    ):
        joint = partial(train_joint, steps=steps, assumptions=assumptions)
        if steps:
            run.stage(stage, partial(joint, family, worlds, plan, run.log))
    family.save(output)
    run.log(f"written to {output} after {(time.time() - start) / 60:.1f} minutes")


def worlds_of(family: Family, folder: Path, count: int) -> list[Rendered]:
    """Training scenes of all sizes of a family, half of them of the first size if there are several."""
    first, *others = family.sizes
    shares = [(first, count // 2 if others else count)]
    shares += [(size, count // 2 // len(others)) for size in others]
    return [rendered(folder, size, family.cell, number) for size, number in shares]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(FAMILIES))
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("training-work"), help="scenes and finished stages")
    parser.add_argument("--smoke", action="store_true", help="a few steps of every stage, to test the code")
    arguments = parser.parse_args()
    train(arguments.model, arguments.output, arguments.work, smoke=arguments.smoke)


if __name__ == "__main__":
    main()
