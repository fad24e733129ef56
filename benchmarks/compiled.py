"""Cost of a decode step on a static cache that is compiled, under methods, beside eager and compiled greedy.

    python -m benchmarks.compiled --size 0.3b --method var --method dola

Each round runs eager greedy, compiled greedy, the eager method and the compiled one; ratios are medians over
the rounds. "limit" is what reading all weights of the text model once takes, at the bandwidth of one long
copy.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import torch
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import CompileConfig, PreTrainedModel

import vlmfix
from benchmarks.overhead import Cost, acting, measure_once, median, random_inputs, random_llava
from vlmfix.models.structure import text_decoder

METHODS = ("var", "vhr", "gift", "pai", "devils", "vaf", "adhh", "dola", "deco", "vcd", "icd", "fastv")


def bandwidth_limit(model: PreTrainedModel) -> float:
    """Milliseconds that reading the weights of the text decoder and the output head once takes.

    A copy of as many bytes reads and writes them, so that half of its time is counted.
    """
    parts = (text_decoder(model), model.get_output_embeddings())
    embeddings = model.get_input_embeddings().weight
    weights = [each for part in parts for each in part.parameters() if each is not embeddings]
    total: int = sum(each.numel() * each.element_size() for each in weights)
    source = torch.empty(min(total, 2**30), dtype=torch.uint8, device=model.device)
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(8):
        _finish(model)
        start = time.perf_counter()
        target.copy_(source)
        _finish(model)
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / 2 * total / len(source)


def _finish(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def compiled_settings(mode: str) -> dict[str, Any]:
    """Arguments of `generate` for a static cache and steps that are compiled, on a CPU, too."""
    config = CompileConfig(fullgraph=True, mode=mode)
    config._compile_all_devices = True  # type: ignore[assignment]  # typed by its default, None
    return {"cache_implementation": "static", "compile_config": config}


def main(
    size: Annotated[str, typer.Option(help="Text model: small, 0.3b or 7b.")] = "0.3b",
    method: Annotated[list[str] | None, typer.Option(help="Methods; twelve by default.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Decoded tokens that are timed.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds after one that compiles.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="torch dtype.")] = "float32",
    mode: Annotated[str, typer.Option(help="Of torch.compile.")] = "default",
) -> None:
    """Print the decode steps of each method, eager and compiled."""
    model = random_llava(size, device=device, dtype=getattr(torch, dtype), kernel="sdpa")
    inputs = random_inputs(model, batch_size, 1)
    settings = compiled_settings(mode)
    limit = bandwidth_limit(model)
    table = Table(
        "method",
        "eager ms",
        "eager / greedy",
        "compiled ms",
        "compiled / compiled greedy",
        "compiled / eager greedy",
        "answer, compiled / eager greedy",
        "first call s",
        box=MARKDOWN,
    )
    console = Console(width=140)
    plain: list[tuple[Cost, Cost]] = []
    for name in ("greedy", *(method or METHODS)):
        acts: vlmfix.Method | None = None if name == "greedy" else acting(name, size)
        start = time.perf_counter()
        measure_once(model, inputs, tokens, acts, **settings)
        first = time.perf_counter() - start
        measured: list[tuple[Cost, Cost, Cost, Cost]] = []
        for _ in track(range(rounds), description=name, transient=True):
            measured.append(
                (
                    measure_once(model, inputs, tokens, None),
                    measure_once(model, inputs, tokens, None, **settings),
                    measure_once(model, inputs, tokens, acts),
                    measure_once(model, inputs, tokens, acts, **settings),
                )
            )
        plain += [(each[0], each[1]) for each in measured]

        def ratio(above: int, below: int, figure: str = "decode", measured: Any = measured) -> str:
            found = [getattr(each[above], figure) / getattr(each[below], figure) for each in measured]
            return f"{statistics.median(found):.3f}"

        eager, compiled = (median([each[column] for each in measured]) for column in (2, 3))
        ratios = ratio(2, 0), ratio(3, 1), ratio(3, 0), ratio(3, 0, "answer")
        table.add_row(
            name,
            f"{eager.decode:.2f}",
            ratios[0],
            f"{compiled.decode:.2f}",
            *ratios[1:],
            f"{first:.0f}",
        )
        console.print(
            f"{name}: {eager.decode:.2f} ms eager, {compiled.decode:.2f} ms compiled", highlight=False
        )
    console.print(table)
    eager, compiled = (median([each[column] for each in plain]) for column in (0, 1))
    console.print(
        f"random LLaVA {size}, {dtype}, {device}, batch {batch_size}, {tokens} tokens, mode {mode!r}; limit "
        f"{limit:.2f} ms a step: eager greedy {eager.decode / limit:.2f}, compiled greedy "
        f"{compiled.decode / limit:.2f} times of it",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
