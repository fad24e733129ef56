"""Effect of every method on hallucination, against greedy decoding of an embedded model.

    python -m benchmarks.effects --model tiny-llava --output runs/effects

Each method gets one setting, chosen from `GRID` on validation scenes by `choose`, and is measured with it on
other scenes. A second start does only what is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import vlmfix
from benchmarks.answers import NEW_TOKENS, Setting, Speaker, Split, versions, write_json
from benchmarks.bootstrap import LEVEL, RESAMPLES, Estimate, Ratio, compare, resample
from benchmarks.judging import COLUMNS, judge

# Settings that compete on the validation scenes, around the published ones as far as those fit a model of
# 8 layers and 64 image tokens; a method that is not named runs at its defaults.
GRID: dict[str, list[dict[str, Any]]] = {
    "var": [
        {"moved_fraction": 0.4},
        {"moved_fraction": 0.6},
        {"moved_fraction": 1.0},
        {"moved_fraction": 0.6, "min_non_sink_share": 0.2},
        {"moved_fraction": 1.0, "min_non_sink_share": 0.2},
        {"moved_fraction": 1.0, "min_non_sink_share": 0.0, "min_image_mass": 0.05},
    ],
    "vhr": [
        {"num_last_layers": 2, "head_scale": 2.0},
        {"num_last_layers": 2, "head_scale": 3.0},
        {"num_last_layers": 3, "head_scale": 1.5},
        {"num_last_layers": 3, "head_scale": 2.0},
        {"num_last_layers": 4, "head_scale": 1.25},
        {"num_last_layers": 4, "head_scale": 1.5},
        {"num_last_layers": 4, "head_scale": 1.5, "scale_positions": "last"},
        {"num_last_layers": 6, "head_scale": 1.25},
    ],
    "gift": [
        {"saliency_layer": 4, "enhanced_layers": (3, 6), "image_boost": 0.5},
        {"saliency_layer": 4, "enhanced_layers": (3, 6), "image_boost": 2.0},
        {"saliency_layer": 4, "enhanced_layers": (5, 7), "image_boost": 2.0},
        {"saliency_layer": 4, "enhanced_layers": (5, 7), "image_boost": 5.0},
        {"saliency_layer": 2, "enhanced_layers": (3, 6), "image_boost": 2.0},
        {"saliency_layer": 2, "enhanced_layers": (2, 4), "image_boost": 1.0},
        {"saliency_layer": 5, "enhanced_layers": (5, 7), "image_boost": 0.5},
    ],
    "carve": [
        {"kept_pixel_fraction": 0.2},
        {"kept_pixel_fraction": 0.4},
        {"kept_pixel_fraction": 0.4, "step_mode": "last"},
        {"kept_pixel_fraction": 0.4, "final_images": "refined"},
    ],
    "adaptinfer": [{"budget": "33%"}, {"budget": "50%"}, {"budget": "70%"}],
    "fastv": [
        {"start_layer": 2, "prune_ratio": 0.25},
        {"start_layer": 2, "prune_ratio": 0.5},
        {"start_layer": 2, "prune_ratio": 0.75},
    ],
    "kmeans": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "randomtokens": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "uniformgrid": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "divprune": [{"keep_ratio": 0.25}, {"keep_ratio": 0.5}, {"keep_ratio": 0.75}],
    "visionzip": [
        {"dominant_tokens": 14, "contextual_tokens": 2},
        {"dominant_tokens": 27, "contextual_tokens": 5},
        {"dominant_tokens": 41, "contextual_tokens": 7},
    ],
    "pyramiddrop": [
        {"prune_layers": (2, 4, 6), "keep_ratios": (0.75, 0.5, 0.25)},
        {"prune_layers": (2, 4, 6), "keep_ratios": (0.5, 0.25, 0.125)},
    ],
    "sparsevlm": [
        {"prune_layers": (2, 4, 6), "kept_tokens": (48, 32, 16)},
        {"prune_layers": (2, 4, 6), "kept_tokens": (32, 16, 8)},
    ],
}

SEED = 770_001
RECALL_LOSS = 0.02
GREEDY = Setting("greedy", {})


@dataclass(frozen=True)
class Candidate:
    """A setting on the validation scenes.

    Args:
        parameters: of the method.
        columns: values by name; empty if refused.
        refused: why the method cannot run on this model.
    """

    parameters: dict[str, Any]
    columns: dict[str, float]
    refused: str = ""


@dataclass(frozen=True)
class Effect:
    """What a method does at the setting chosen for it.

    Args:
        setting: method and parameters.
        columns: by name, on the test scenes; empty if every candidate was refused.
        inactive: whether the method never edited anything.
        candidates: what there was to choose from; empty for greedy.
    """

    setting: Setting
    columns: dict[str, Estimate]
    inactive: bool
    candidates: list[Candidate]


@dataclass(frozen=True)
class Measured:
    """Answers of a setting on one split, judged: columns by name."""

    columns: dict[str, Ratio]
    inactive: bool

    @property
    def values(self) -> dict[str, float]:
        return {name: ratio.value for name, ratio in self.columns.items()}


def choose(greedy: Mapping[str, float], candidates: Sequence[Mapping[str, float]]) -> int:
    """Index of the candidate that a method is measured with.

    It has the largest accuracy - CHAIRi (so the largest difference of it to greedy) among the candidates
    whose recall is at most 0.02 below that of greedy; if there is none, the largest recall. The first one
    wins a tie.

    Args:
        greedy: columns of plain decoding on the validation scenes.
        candidates: columns of each candidate there, at least one.
    """
    indices = range(len(candidates))
    harmless = [i for i in indices if candidates[i]["recall"] >= greedy["recall"] - RECALL_LOSS]
    if harmless:
        return max(harmless, key=lambda i: candidates[i]["accuracy"] - candidates[i]["CHAIRi"])
    return max(indices, key=lambda i: candidates[i]["recall"])


class Comparison:
    """Methods against greedy decoding of one model on the same scenes.

    Args:
        speaker: the model.
        validation: scenes on which settings are chosen.
        test: other scenes, on which they are measured.
        progress: shows the prompts of the setting at work.
    """

    def __init__(self, speaker: Speaker, validation: Split, test: Split, progress: Progress) -> None:
        self.speaker, self.validation, self.test, self.progress = speaker, validation, test, progress
        self.task = progress.add_task("")
        self.weights = resample(test.count)
        self.greedy = {split: self._measure(GREEDY, split) for split in (validation, test)}

    def effect(self, settings: Sequence[Setting]) -> Effect:
        """One method, from the choice among its settings, at least one, to its columns."""
        candidates = [self._validate(setting) for setting in settings]
        accepted = [i for i, candidate in enumerate(candidates) if not candidate.refused]
        if not accepted:
            return Effect(settings[0], {}, inactive=False, candidates=candidates)
        columns = [candidates[i].columns for i in accepted]
        chosen = settings[accepted[choose(self.greedy[self.validation].values, columns)]]
        return self._against_greedy(chosen, self._measure(chosen, self.test), candidates)

    def effect_of_greedy(self) -> Effect:
        """The row that the others are compared with."""
        return self._against_greedy(GREEDY, self.greedy[self.test], [])

    def _validate(self, setting: Setting) -> Candidate:
        try:
            return Candidate(setting.parameters, self._measure(setting, self.validation).values)
        except (vlmfix.UnsupportedError, ValueError) as error:
            return Candidate(setting.parameters, {}, refused=str(error))

    def _measure(self, setting: Setting, split: Split) -> Measured:
        label = f"{setting.method} ({setting}), {split.name}"
        self.progress.reset(self.task, total=split.count + len(split.items), description=label)
        advance = functools.partial(self.progress.advance, self.task)
        captions, verdicts = (self.speaker.answers(setting, split, kind, advance) for kind in NEW_TOKENS)
        return Measured(
            judge(split, captions.texts, verdicts.texts),
            inactive=setting != GREEDY and not (captions.site_share or verdicts.site_share),
        )

    def _against_greedy(self, setting: Setting, measured: Measured, candidates: list[Candidate]) -> Effect:
        greedy = self.greedy[self.test]
        return Effect(
            setting,
            {name: compare(measured.columns[name], greedy.columns[name], self.weights) for name in COLUMNS},
            inactive=measured.inactive,
            candidates=candidates,
        )


def table(effects: Sequence[Effect]) -> str:
    """A row for every method, in Markdown."""
    lines = [f"| method | setting | {' | '.join(COLUMNS)} |", f"|{' --- |' * (len(COLUMNS) + 2)}"]
    lines += [f"| {' | '.join(_cells(effect))} |" for effect in effects]
    return "\n".join(lines)


def _cells(effect: Effect) -> list[str]:
    method = effect.setting.method + (" (inactive)" if effect.inactive else "")
    if not effect.columns:
        reason = effect.candidates[0].refused.replace("|", "\\|")
        return [method, f"refused: {reason}", *[""] * len(COLUMNS)]
    cells = []
    for name, estimate in effect.columns.items():
        digits = 2 if name == "words" else 3
        cell = f"{estimate.value:.{digits}f}"
        if effect.setting != GREEDY:
            low, high = f"{estimate.low:+.{digits}f}", f"{estimate.high:+.{digits}f}"
            cell += f" ({estimate.difference:+.{digits}f}, {low} to {high})"
        cells.append(cell)
    return [method, str(effect.setting), *cells]


def heading(model: str, validation: Split, test: Split) -> str:
    """What the table is of, in one line."""
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"Test bed: {model} on drawn scenes; this says nothing about large models. {test.count} test scenes "
        f"of seed {test.seed}, settings chosen on {validation.count} of seed {validation.seed}; {used}. In "
        f"parentheses: difference to greedy and its {LEVEL:.0%} interval, paired and clustered by scene "
        f"({RESAMPLES} bootstrap resamples). Accuracy and yes-ratio: questions about co-occurring negatives "
        f"and as many positives."
    )


def main(
    model: Annotated[str, typer.Option(help="Embedded model, or a folder.")] = "tiny-llava",
    output: Annotated[Path, typer.Option(help="Folder of table and answers.")] = Path("runs/effects"),
    method: Annotated[list[str] | None, typer.Option(help="Methods; all by default.")] = None,
    validation: Annotated[int, typer.Option(min=1, help="Scenes on which settings are chosen.")] = 200,
    test: Annotated[int, typer.Option(min=1, help="Scenes on which they are measured.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[
        int, typer.Option(min=0, help="World of the test scenes; validation takes the next.")
    ] = SEED,
) -> None:
    """Print the effect of every method against greedy decoding as a Markdown table."""
    grid = {
        name: [Setting(name, parameters) for parameters in GRID.get(name, [{}])]
        for name in method or vlmfix.methods()
    }
    for settings in grid.values():
        for setting in settings:
            setting.build()  # a mistake shows now, not in an hour
    splits = Split("validation", seed + 1, validation), Split("test", seed, test)
    name = Path(model).name
    speaker = Speaker(model, output / name, batch_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        methods = progress.add_task("methods", total=1 + len(grid))
        comparison = Comparison(speaker, *splits, progress)
        effects = [comparison.effect_of_greedy()]
        progress.advance(methods)
        for settings in grid.values():
            effects.append(comparison.effect(settings))
            progress.advance(methods)
    text = f"{heading(name, *splits)}\n\n{table(effects)}\n"
    (output / f"{name}.md").write_text(text, encoding="utf-8")
    content = {
        "model": model,
        "versions": versions(),
        "splits": [asdict(split) for split in splits],
        "effects": [asdict(effect) for effect in effects],
    }
    write_json(output / f"{name}.json", content)
    typer.echo(text, nl=False)


if __name__ == "__main__":
    typer.run(main)
