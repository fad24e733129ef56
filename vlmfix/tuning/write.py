"""What a search leaves in its folder: the recipe, the results as JSON, and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from vlmfix.evaluation.files.atomic import write_json
from vlmfix.evaluation.files.hashing import plain
from vlmfix.methods.baselines.decoding import BaselineBeam
from vlmfix.methods.baselines.output_shift import BaselineOutputShift
from vlmfix.recipes import Recipe
from vlmfix.tuning.candidates import Candidate
from vlmfix.tuning.choice import GREEDY
from vlmfix.tuning.config import TuneSettings
from vlmfix.tuning.final import evidence
from vlmfix.tuning.objective import AUC, directions
from vlmfix.tuning.page import write_page
from vlmfix.tuning.search import Trial
from vlmfix.tuning.sets import ThreeSets
from vlmfix.tuning.tune import Result, Tuning
from vlmfix.tuning.worlds import World

RECIPE_FILE, RESULTS, PAGE = "recipe.yaml", "results.json", "tune.html"


def make_recipe(
    settings: TuneSettings, result: Result, model: PreTrainedModel, versions: Mapping[str, str]
) -> Recipe:
    """The recipe that a search chose, with its evidence."""
    assert result.chosen is not None
    methods = [each for each in result.chosen.methods if not isinstance(each, BaselineBeam)]
    if result.offset is not None:
        methods.append(BaselineOutputShift(delta=round(result.offset, 4)))
    beams = [each.num_beams for each in result.chosen.methods if isinstance(each, BaselineBeam)]
    return Recipe.of(
        model,
        methods,
        name=f"{settings.model.rstrip('/').rpartition('/')[2]} {settings.task}",
        decoding={"num_beams": beams[0]} if beams else {},
        task=settings.task,
        data={
            "sets": {name: plain(data) for name, data in settings.data.items()},
            "images": asdict(settings.sizes),
            "objective": list(settings.objective),
            "keep": list(settings.keep or ()),
            "seed": settings.seed,
            "trials": len(result.trials),
        },
        evidence=evidence(result.tables),
        versions=versions,
    )


def write_results(tuning: Tuning, result: Result, recipe: Recipe | None) -> None:
    """Write `results.json` and the page, and `recipe.yaml` if there is one."""
    objective, output = tuning.objective, tuning.settings.output
    summary: dict[str, Any] = {
        "settings": plain(asdict(tuning.settings)),
        "images": {world.name: _images(world.sets) for world in tuning.worlds},
        "metrics": _metrics(tuning.worlds[0]),
        "objective": list(objective.metrics),
        "guards": [str(guard) for guard in objective.guards],
        "trials": [_trial(trial) for trial in result.trials],
        "importances": dict(result.importances),
        "finalists": [
            {
                "candidate": each.candidate.label,
                "gains": list(each.gains),
                "figures": plain(each.figures),
                "broken": list(each.broken),
            }
            for each in result.finalists
        ],
        "chosen": None if result.chosen is None else result.chosen.label,
        "parts": [] if result.chosen is None else _parts(result.chosen),
        "offset": result.offset,
        "test": [
            {"data": table.data, "images": table.images, "metrics": list(table.metrics)}
            | {"rows": [plain(asdict(row)) for row in table.rows]}
            for table in result.tables
        ],
    }
    write_json(output / RESULTS, summary)
    if recipe is not None:
        recipe.write(output / RECIPE_FILE)
    write_page(output / PAGE, summary)


def _trial(trial: Trial) -> dict[str, Any]:
    """A trial and what it came to, in one."""
    own = plain(asdict(trial))
    measured = own.pop("measured")
    return {**own, **measured, "candidate": trial.candidate.label, "cost": trial.candidate.cost}


def _images(sets: ThreeSets) -> dict[str, int]:
    """The number of images of each of the three sets."""
    return {name: len({sample.cluster for sample in own}) for name, own in vars(sets).items()}


def _metrics(world: World) -> dict[str, dict[str, Any]]:
    """Which direction of each metric is better, and whether it is a share."""
    metrics = world.answer(GREEDY, world.sets.search).outcome.metrics
    shares = {metric.name: metric.percent for metric in metrics if not metric.group} | {AUC: True}
    found = directions(metrics, yes_no=world.task.yes_no)
    return {name: {"better": better, "percent": shares.get(name, False)} for name, better in found.items()}


def _parts(candidate: Candidate) -> list[dict[str, Any]]:
    """The methods of a recipe, and what each one changes."""
    return [
        {
            "name": name,
            "parameters": dict(own),
            "changes": method.info.changes,
        }
        for (name, own), method in zip(candidate.parts, candidate.methods, strict=True)
    ]
