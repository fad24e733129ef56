"""Answers a second of a job of several methods, in one pass over the pictures and method by method.

    python -m benchmarks.eval_together --images 60
    python -m benchmarks.eval_together --task chair --images 128 --method greedy --method var --method gift

`one after the other` is a job a method, and `together` one job of all of them, whose runs take turns over the
same pictures; both write their records, to the end. The model is loaded once, and rounds alternate. Answers
are compared in float32.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import vlmfix
from vlmfix.evaluation.datasets.synthetic.synthetic import SEED, synthetic_folder
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.host import LocalHost
from vlmfix.evaluation.runner.plan import RunPlan, prepare
from vlmfix.evaluation.runner.shard import Shard

# Drawn for each image that is asked about.
_SCENES = 4

Answers = dict[tuple[str, str], str]
"""Text by method and sample."""


class Silent:
    """Progress of a job and of its runs that nobody looks at."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def begin(self, title: str, running: str, total: int, done: int) -> Silent:
        """A run begins."""
        return self

    def advance(self, records: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> None:
        """Records were written."""

    def end(self) -> None:
        """The run is over."""


def answered(
    host: LocalHost, methods: Sequence[str], task: str, data: Path, images: int, output: Path
) -> tuple[float, Answers]:
    """Seconds that a job takes, without the reading of its data, and its answers.

    Args:
        data: folder of the scenes that were drawn.
    """
    output.mkdir(parents=True)
    (output / "data").symlink_to(data)
    scenes = {"count": _SCENES * images, "seed": SEED}  # not all of which have questions
    settings = {
        "tasks": [task],
        "methods": list(methods),
        "data": {"synthetic": scenes},
        "output": str(output),
    }
    job = make_job(settings | {"limit_images": images, "baselines": False})
    plans = prepare(job)
    start = time.perf_counter()
    runs = execute(job, plans, host, Shard(), Silent())
    seconds = time.perf_counter() - start
    return seconds, {
        (run.variant.label, record["id"]): record["text"] for run in runs for record in _records(run)
    }


def _records(run: RunPlan) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in (run.path / "records").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def main(
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id.")] = "tiny-llava",
    task: Annotated[Literal["pope", "chair"], typer.Option(help="Questions, or captions.")] = "pope",
    method: Annotated[list[str] | None, typer.Option(help="Methods; repeatable.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 3,
    device: Annotated[str, typer.Option(help="Device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="dtype of the weights.")] = "float32",
) -> None:
    """Print answers a second, the gain of each round, and how many answers differ."""
    methods = method or ["greedy", "dola", "deco", "vcd"]
    host = LocalHost(*vlmfix.load(model, dtype=dtype, device_map=None if device == "cpu" else device))
    gains, speeds = [], []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data"
        synthetic_folder(data, count=_SCENES * images, seed=SEED)
        for number in track(range(rounds), task, console=Console(stderr=True), transient=True):
            alone: Answers = {}
            seconds = 0.0
            for each in methods:
                own, answers = answered(host, [each], task, data, images, folder / f"{number}" / each)
                seconds += own
                alone |= answers
            own, together = answered(host, methods, task, data, images, folder / f"{number}" / "together")
            speeds.append((len(alone) / seconds, len(together) / own))
            gains.append(seconds / own)
    differing = sum(together[key] != text for key, text in alone.items())
    table = Table("methods", "one after the other", "together", "gain", "answers that differ")
    one, other = (
        f"{median(each):.1f}/s ({min(each):.1f} to {max(each):.1f})" for each in zip(*speeds, strict=True)
    )
    gain = f"{median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
    table.add_row(", ".join(methods), one, other, gain, f"{differing} of {len(alone)}")
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
