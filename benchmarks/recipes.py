"""What a recipe does on scenes that no search has seen, beside its parts and what it must beat.

    python -m benchmarks.recipes --model tiny-llava --recipe configs/recipes/tiny-llava.yaml

The table of `vlmfix tune`, on other scenes: by default 1000 that often lack the partner of an object and 400
like those of the training, of the seed of the table of effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import vlmfix
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.plan import prepare
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.tuning.candidates import Candidate
from vlmfix.tuning.final import PLAIN, RECIPE, FinalTable, compared, final_table
from vlmfix.tuning.sets import ThreeSets
from vlmfix.tuning.worlds import World

SEED = 770_001


def candidate_of(recipe: vlmfix.Recipe) -> tuple[Candidate, float | None]:
    """The candidate of a recipe, and its offset between yes and no."""
    parts: dict[str, dict[str, Any]] = {name: dict(own) for name, own in recipe.methods}
    offset = parts.pop(vlmfix.BaselineOutputShift.name, {}).get("delta")
    if recipe.decoding:
        parts[vlmfix.BaselineBeam.name] = dict(recipe.decoding)
    return Candidate.of(parts), offset


def measured(world: World, recipe: vlmfix.Recipe, metrics: Sequence[str]) -> FinalTable:
    """The rows of a recipe on all samples of a data set."""
    candidate, offset = candidate_of(recipe)
    rows = compared(candidate)
    samples = world.sets.test
    answered = {label: world.answer(each, samples, offset=offset or 0.0) for label, each in rows.items()}
    answered |= {} if world.task.yes_no else world.matched(answered[PLAIN], answered[RECIPE])
    return final_table(world.name, answered, metrics)


def markdown(table: FinalTable) -> str:
    """The table, differences in parentheses."""
    lines = [
        f"| {table.data}, {table.images} scenes | {' | '.join(table.metrics)} | cost |",
        f"| --- {'| --- ' * len(table.metrics)}| --- |",
    ]
    for row in table.rows:
        texts = []
        for name in table.metrics:
            cell = row.cells[name]
            text = f"{cell.value:.3f}"
            if cell.difference is not None and cell.difference.low is not None:
                low, high = cell.difference.low, cell.difference.high
                star = "*" if row.mark is not None and row.mark.marked and name == table.metrics[0] else ""
                text += f" ({cell.difference.value:+.3f}, {low:+.3f} to {high:+.3f}){star}"
            texts.append(text)
        lines.append(f"| {row.label} | {' | '.join(texts)} | {row.cost:.1f} |")
    return "\n".join(lines)


def main(
    model: Annotated[str, typer.Option(help="Embedded model, or a folder.")] = "tiny-llava",
    recipe: Annotated[Path | None, typer.Option(help="Recipe file; by default that of the model.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the answers.")] = Path("runs/recipes"),
    unusual: Annotated[int, typer.Option(help="Scenes that often lack a partner.")] = 1000,
    usual: Annotated[int, typer.Option(help="Scenes like those of the training.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="World of the scenes.")] = SEED,
) -> None:
    """Print the tables of a recipe in Markdown."""
    loaded, processor = vlmfix.load(model, dtype="float32")
    chosen = vlmfix.find_recipe(loaded) if recipe is None else vlmfix.load_recipe(recipe)
    chosen.check(loaded)
    typer.echo(f"{chosen.name}: {candidate_of(chosen)[0].label}, torch {torch.__version__}\n")
    for name, split, count in (("unusual", "test", unusual), ("usual", "train", usual)):
        job = make_job(
            {
                "tasks": [chosen.task],
                "model": model,
                "data": {"synthetic": {"count": count, "seed": seed, "split": split}},
                "output": str(output / f"{Path(model).name}-{name}"),
                "baselines": False,
            }
        )
        [plan] = prepare(job)
        world = World(
            f"{name} scenes", job, plan, ThreeSets([], [], plan.samples), loaded, processor, Shard()
        )
        metrics = (
            ("AUC", "accuracy", "yes ratio") if world.task.yes_no else ("CHAIRi", "CHAIRs", "recall", "words")
        )
        typer.echo(f"{markdown(measured(world, chosen, metrics))}\n")


if __name__ == "__main__":
    typer.run(main)
