"""Speed on whatever machine is there, against the last run that was kept of such a machine.

    make bench

Ratios to greedy decoding, interleaved with it in one process, by `benchmarks.overhead`, with their spread
over the rounds after one round to warm up. A ratio that is more than 5 % above the kept one, beyond the
spread of both, is told as slower, and the exit code is then 1. The runs are kept in `benchmarks/runs/`, a
file a kind of machine, the newest last.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.answers import versions, write_json
from benchmarks.overhead import acting, measure_rounds, median, random_llava

RUNS = Path(__file__).with_name("runs")
METHODS = ("greedy", "var", "vhr", "gift", "pai", "vcd", "icd", "dola", "deco", "fastv", "adaptinfer")
FIGURES = ("prefill", "decode", "answer")
SLOWER = 1.05


@dataclass(frozen=True)
class Ratio:
    """A ratio to greedy decoding.

    Args:
        median: over the rounds.
        spread: half of what lies between the quartiles of the rounds.
    """

    median: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        """Of the values of at least two rounds."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, (high - low) / 2)

    def is_slower_than(self, before: Ratio) -> bool:
        """Whether it is more than 5 % above another, beyond the spread of both."""
        return self.median > SLOWER * before.median + self.spread + before.spread


def machine_kind(device: str) -> str:
    """What computes, in words that name a file: the GPU, or the CPU and its number of cores."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu()} {os.cpu_count()} cores"
    return re.sub(r"[^\w.]+", "-", name).strip("-").lower()


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def comparable(run: dict[str, Any]) -> tuple[Any, ...]:
    """What has to be equal for two runs to be compared."""
    return tuple(run["settings"][name] for name in ("size", "dtype", "device", "threads", "tokens"))


def regressions(run: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What is slower in a run than in an earlier one of the same settings, a line each."""
    lines = []
    for method, figures in run["methods"].items():
        for name, value in figures.items():
            old = before["methods"].get(method, {}).get(name)
            if old is not None and Ratio(**value).is_slower_than(Ratio(**old)):
                lines.append(
                    f"slower: {method}, {name}: {value['median']:.3f} (±{value['spread']:.3f}), "
                    f"{old['median']:.3f} (±{old['spread']:.3f}) on {before['date']}"
                )
    return lines


def main(
    size: Annotated[str, typer.Option(help="Text model: small, 0.3b or 7b.")] = "0.3b",
    method: Annotated[list[str] | None, typer.Option(help="Methods; eleven by default.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Decoded tokens that are timed.")] = 16,
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds after one warm-up.")] = 5,
    device: Annotated[str, typer.Option(help="torch device, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="torch dtype; auto: bfloat16 on a GPU.")] = "auto",
    runs: Annotated[Path, typer.Option(help="Folder of the runs that are kept.")] = RUNS,
) -> None:
    """Measure, keep, and compare with the last run of such a machine."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    kind = machine_kind(device)
    path = runs / f"{kind}.json"
    kept: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    model = random_llava(size, device=device, dtype=getattr(torch, dtype), kernel="sdpa")
    settings = {
        "size": size,
        "dtype": dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "rounds": rounds,
    }
    found: dict[str, dict[str, Any]] = {}
    table = Table("method", *FIGURES, "decode ms per token", box=MARKDOWN)
    for name in method or METHODS:
        acts = None if name == "greedy" else acting(name, size)
        costs, ratios = measure_rounds(model, acts, tokens=tokens, rounds=rounds, batch_size=1, images=1)
        own = {each: Ratio.of([getattr(ratio, each) for ratio in ratios]) for each in FIGURES}
        found[name] = {each: asdict(ratio) for each, ratio in own.items()}
        cells = (f"{ratio.median:.3f} ±{ratio.spread:.3f}" for ratio in own.values())
        table.add_row(name, *cells, f"{median(costs).decode:.2f}")
    run = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": kind,
        "versions": versions(),
        "settings": settings,
        "methods": found,
    }
    earlier = [each for each in kept if comparable(each) == comparable(run)]
    write_json(path, [*kept, run])
    console = Console(width=120)
    console.print(f"{kind}, {settings}, {run['versions']}", table, sep="\n", highlight=False)
    if not earlier:
        console.print(f"no earlier run of this machine with these settings; kept in {path}")
        return
    slower = regressions(run, earlier[-1])
    console.print(*(slower or [f"nothing is slower than on {earlier[-1]['date']}"]), sep="\n")
    if slower:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
