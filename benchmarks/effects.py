"""Effect of every method on hallucination, against greedy decoding of an embedded model.

    python -m benchmarks.effects --model tiny-llava --output runs/effects

Each method gets one setting, chosen from `GRID` on validation scenes by `choose`, and is measured with it on
other scenes: against greedy decoding, and against what matches it (`benchmarks.matched`). Controls stand
first. A second start does only what is missing.
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
from benchmarks.grid import CONTROLS, GRID
from benchmarks.judging import COLUMNS, judge
from benchmarks.matched import MATCHED, RANDOM, SMALLER, cut, pooled, random_choices, shifted

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
        matched: the same against the controls that match it, by the names in `MATCHED`, for a pruning in
            `SMALLER` and for a method that chooses in `RANDOM`; empty for controls.
        inactive: whether the method never edited anything.
        candidates: what there was to choose from; empty for greedy.
    """

    setting: Setting
    columns: dict[str, Estimate]
    matched: dict[str, Estimate]
    inactive: bool
    candidates: list[Candidate]

    @property
    def beats(self) -> list[str]:
        """Columns in which it is better than greedy and than everything that matches it, at the level of the
        intervals: "accuracy"; "CHAIRi", where recall is at most 0.02 below that of greedy."""
        if not self.matched:
            return []
        signs = {"accuracy": 1, "CHAIRi": -1}
        if self.columns["recall"].difference < -RECALL_LOSS:
            del signs["CHAIRi"]
        against = {name: [self.columns[name]] for name in signs}
        for name, of in (MATCHED | SMALLER | RANDOM).items():
            if name in self.matched and of in against:
                against[of].append(self.matched[name])
        return [
            name
            for name, estimates in against.items()
            if all(min(signs[name] * each.low, signs[name] * each.high) > 0 for each in estimates)
        ]


@dataclass(frozen=True)
class Measured:
    """Answers of a setting on one split, and their columns by name."""

    captions: list[str]
    verdicts: list[str]
    columns: dict[str, Ratio]
    inactive: bool
    image_tokens: float | None

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
        self.margins = speaker.margins(test)

    def effect(self, settings: Sequence[Setting]) -> Effect:
        """One method, from the choice among its settings, at least one, to its columns."""
        candidates = [self._validate(setting) for setting in settings]
        accepted = [i for i, candidate in enumerate(candidates) if not candidate.refused]
        if not accepted:
            return Effect(settings[0], {}, {}, inactive=False, candidates=candidates)
        columns = [candidates[i].columns for i in accepted]
        chosen = settings[accepted[choose(self.greedy[self.validation].values, columns)]]
        measured = self._measure(chosen, self.test)
        matched = self._against_matched(measured) | self._against_smaller(measured)
        matched |= self._against_random(chosen, measured)
        return self._against_greedy(chosen, measured, matched, candidates)

    def effect_of_control(self, setting: Setting) -> Effect:
        """A row that says what a simple device does."""
        return self._against_greedy(setting, self._measure(setting, self.test), {}, [])

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
            captions.texts,
            verdicts.texts,
            judge(split, captions.texts, verdicts.texts),
            inactive=any(method.edits for method in setting.build())
            and not (captions.site_share or verdicts.site_share),
            image_tokens=captions.image_tokens,
        )

    def _against_matched(self, measured: Measured) -> dict[str, Estimate]:
        """A method, its longer captions cut, against greedy decoding that says yes as often as it does, and
        longer captions of which are cut.
        """
        greedy, tokenizer = self.greedy[self.test], self.speaker.processor.tokenizer
        verdicts = shifted(self.margins, measured.verdicts)
        control = judge(self.test, cut(greedy.captions, measured.captions, tokenizer), verdicts)
        shorter = cut(measured.captions, greedy.captions, tokenizer)
        method = judge(self.test, shorter, measured.verdicts)
        return {name: compare(method[of], control[of], self.weights) for name, of in MATCHED.items()}

    def _against_smaller(self, measured: Measured) -> dict[str, Estimate]:
        """A pruning against pictures of at most as many tokens as it has in a layer on average; empty of
        other methods."""
        if measured.image_tokens is None:
            return {}
        tokens = max(1, round(measured.image_tokens))
        try:
            control = self._measure(Setting("baseline.resize", {"kept_tokens": tokens}), self.test)
        except vlmfix.UnsupportedError:  # the row of this control has the reason
            return {}
        return {
            name: compare(measured.columns[of], control.columns[of], self.weights)
            for name, of in SMALLER.items()
        }

    def _against_random(self, setting: Setting, measured: Measured) -> dict[str, Estimate]:
        """A method against the same with random choices, all draws together; empty where it chooses nothing
        that could be drawn."""
        try:
            draws = [
                self._measure(each, self.test).columns
                for each in random_choices(setting, measured.image_tokens)
            ]
        except (vlmfix.UnsupportedError, ValueError):  # there is nothing to draw from, such as other heads
            return {}
        if not draws:
            return {}
        control = pooled(draws)
        return {name: compare(measured.columns[of], control[of], self.weights) for name, of in RANDOM.items()}

    def _against_greedy(
        self,
        setting: Setting,
        measured: Measured,
        matched: dict[str, Estimate],
        candidates: list[Candidate],
    ) -> Effect:
        greedy = self.greedy[self.test]
        return Effect(
            setting,
            {name: compare(measured.columns[name], greedy.columns[name], self.weights) for name in COLUMNS},
            matched,
            inactive=measured.inactive,
            candidates=candidates,
        )


def table(effects: Sequence[Effect]) -> str:
    """A row for every method, in Markdown."""
    names = [*COLUMNS, *MATCHED, *RANDOM, *SMALLER]
    lines = [f"| method | setting | beats all | {' | '.join(names)} |", f"|{' --- |' * (len(names) + 3)}"]
    lines += [f"| {' | '.join(_cells(effect))} |" for effect in effects]
    return "\n".join(lines)


def _cells(effect: Effect) -> list[str]:
    method = effect.setting.method + (" (inactive)" if effect.inactive else "")
    if not effect.columns:
        reason = effect.candidates[0].refused.replace("|", "\\|")
        empty = [""] * (1 + len(COLUMNS) + len(MATCHED) + len(RANDOM) + len(SMALLER))
        return [method, f"refused: {reason}", *empty]
    cells = []
    for name, estimate in effect.columns.items():
        digits = 2 if name == "words" else 3
        cell = f"{estimate.value:.{digits}f}"
        cells.append(cell if effect.setting == GREEDY else f"{cell} ({_difference(estimate, digits)})")
    for name in (*MATCHED, *RANDOM, *SMALLER):
        matched = effect.matched.get(name)
        cells.append(
            "" if matched is None else f"{matched.value - matched.difference:.3f} ({_difference(matched, 3)})"
        )
    return [method, str(effect.setting), ", ".join(effect.beats), *cells]


def _difference(estimate: Estimate, digits: int) -> str:
    low, high = (f"{each:+.{digits}f}" for each in (estimate.low, estimate.high))
    return f"{estimate.difference:+.{digits}f}, {low} to {high}"


def heading(model: str, validation: Split, test: Split) -> str:
    """What the table is of, in one line."""
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"Test bed: {model} on drawn scenes; this says nothing about large models. {test.count} test scenes "
        f"of seed {test.seed}, settings chosen on {validation.count} of seed {validation.seed}; {used}. In "
        f"parentheses: difference to greedy and its {LEVEL:.0%} interval, paired and clustered by scene "
        f"({RESAMPLES} bootstrap resamples). Accuracy and yes-ratio: questions about co-occurring negatives "
        f"and as many positives. The last columns have the value of a control that matches the method, and "
        f"in parentheses the difference of the method to it: greedy decoding with an offset between yes and "
        f"no at which it says yes as often (calibrated on these very items), and greedy captions, where the "
        f"longer one of two captions of a scene is cut to the tokens of the shorter; for a method that "
        f"chooses heads, directions or tokens the same with random ones (three draws together); for a "
        f"pruning also greedy decoding on pictures so small that they have at most as many tokens as it has "
        f"in a layer on average (baseline.resize). 'Beats all' names what is better than greedy and than "
        f"each of these, the whole interval: accuracy, or CHAIRi where recall is at most {RECALL_LOSS} lower."
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
        for name in sorted(method or vlmfix.list_methods(), key=lambda name: not name.startswith("baseline."))
        if not name.startswith("baseline.") or name in GRID
    }
    for setting in (*CONTROLS, *(setting for settings in grid.values() for setting in settings)):
        setting.build()  # a mistake shows now, not in an hour
    splits = Split("validation", seed + 1, validation), Split("test", seed, test)
    name = Path(model).name
    speaker = Speaker(model, output / name, batch_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        methods = progress.add_task("methods", total=1 + len(CONTROLS) + len(grid))
        comparison = Comparison(speaker, *splits, progress)
        effects = []
        for setting in (GREEDY, *CONTROLS):
            effects.append(comparison.effect_of_control(setting))
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
