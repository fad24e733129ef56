"""What a recipe does on scenes that no search has seen, beside its parts and what it must beat.

    python -m benchmarks.recipes --model tiny-llava --recipe configs/recipes/tiny-llava.yaml

The table of `vlmfix tune`, on other scenes: by default 1000 that often lack the partner of an object and 400
like those of the training, of the seed of the table of effects.
"""

from __future__ import annotations

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
METRICS = ("CHAIRi", "CHAIRs", "recall", "words")


def candidate_of(recipe: vlmfix.Recipe) -> Candidate:
    """The candidate that a recipe is."""
    parts: dict[str, dict[str, Any]] = {name: dict(own) for name, own in recipe.methods}
    if recipe.decoding:
        parts[vlmfix.BaselineBeam.name] = dict(recipe.decoding)
    return Candidate.of(parts)


def measured(world: World, recipe: vlmfix.Recipe, *, leave_one_out: bool) -> FinalTable:
    """The rows of a recipe on all samples of a data set."""
    rows = compared(candidate_of(recipe))
    if not leave_one_out:
        rows = {label: each for label, each in rows.items() if not label.startswith("without ")}
    answered = {label: world.answer(each, world.sets.test) for label, each in rows.items()}
    answered |= world.matched(answered[PLAIN], answered[RECIPE])
    return final_table(world.name, answered, METRICS)


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
    leave_one_out: Annotated[bool, typer.Option(help="Also the recipe without each of its parts.")] = True,
) -> None:
    """Print the tables of a recipe in Markdown."""
    loaded, processor = vlmfix.load(model, dtype="float32")
    chosen = vlmfix.find_recipe(loaded) if recipe is None else vlmfix.load_recipe(recipe)
    chosen.check(loaded)
    if chosen.task != "chair":
        raise typer.BadParameter(f"{chosen.name!r} is for {chosen.task}; this table is of captions (chair)")
    typer.echo(f"{chosen.name}: {candidate_of(chosen).label}, torch {torch.__version__}\n")
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
        typer.echo(f"{markdown(measured(world, chosen, leave_one_out=leave_one_out))}\n")


if __name__ == "__main__":
    typer.run(main)
