"""Where the time of a decode step goes under a method: operations by what they add to plain greedy decoding.

    make profile METHOD=var

Times are of the operations themselves, without those that they call. What is left of a step is Python and
the dispatch of operations, which the profiler itself makes slower: ratios are those of `benchmarks.overhead`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import vlmfix
from benchmarks.overhead import Processor, acting, random_inputs, random_llava


class Steps(NamedTuple):
    """What decode steps cost, by operation.

    Args:
        times: milliseconds a step.
        calls: a step.
    """

    times: Counter[str]
    calls: Counter[str]


class AfterPrefill(BaseStreamer):
    """Starts a profiler when the first token comes out, which ends the prefill, and stops it at the last."""

    def __init__(self, profiler: profile) -> None:
        self._profiler = profiler
        self._seen = 0

    def put(self, value: torch.Tensor) -> None:
        self._seen += 1
        if self._seen == 2:  # the prompt came first
            self._profiler.start()

    def end(self) -> None:
        self._profiler.stop()


def profiled(
    model: PreTrainedModel, method: vlmfix.Method | None, inputs: dict[str, Any], tokens: int
) -> Steps:
    """Decode steps under a method, after an answer to warm up."""
    processor: Any = Processor()  # in the place of one of transformers
    activities = [ProfilerActivity.CPU]
    if model.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    settings = {"max_new_tokens": tokens + 1, "min_new_tokens": tokens + 1, "do_sample": False}
    profiler = profile(activities=activities)
    with method(model, processor) if method else nullcontext():
        generate: Any = model.generate  # of GenerationMixin, unknown to the type of the model
        generate(**inputs, **settings)
        generate(**inputs, **settings, streamer=AfterPrefill(profiler))
    of_device = "self_device_time_total" if model.device.type == "cuda" else "self_cpu_time_total"
    events = profiler.key_averages()
    return Steps(
        Counter({each.key: getattr(each, of_device) / 1000 / tokens for each in events}),
        Counter({each.key: round(each.count / tokens) for each in events}),
    )


def main(
    method: Annotated[str, typer.Option(help="Method.")] = "var",
    size: Annotated[str, typer.Option(help="Text model: small, 0.3b or 7b.")] = "0.3b",
    tokens: Annotated[int, typer.Option(min=1, help="Decode steps.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="torch dtype.")] = "float32",
    rows: Annotated[int, typer.Option(min=1, help="Operations that are listed.")] = 15,
) -> None:
    """Print the operations that a method adds to a decode step, the most expensive first."""
    model = random_llava(size, device=device, dtype=getattr(torch, dtype), kernel="sdpa")
    inputs = random_inputs(model, batch_size, 1)
    plain, steered = (profiled(model, each, inputs, tokens) for each in (None, acting(method, size)))
    added = Counter(steered.times)
    added.subtract(plain.times)
    table = Table("operation", "greedy ms", f"{method} ms", "added ms", "greedy calls", "calls", box=MARKDOWN)
    for name, value in sorted(added.items(), key=lambda item: -abs(item[1]))[:rows]:
        table.add_row(
            name,
            f"{plain.times[name]:.3f}",
            f"{steered.times[name]:.3f}",
            f"{value:+.3f}",
            str(plain.calls[name]),
            str(steered.calls[name]),
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"random LLaVA {size}, {dtype}, {device}, batch {batch_size}, {tokens} steps; a step of greedy "
        f"decoding: {plain.times.total():.2f} ms in {plain.calls.total()} operations, under {method}: "
        f"{steered.times.total():.2f} ms in {steered.calls.total()}",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
