"""How the cost of a method grows with image tokens, batch, beams and answers, one method of each class.

    python -m benchmarks.wide
    python -m benchmarks.wide --memory

From one image, one sequence, one beam and 16 tokens, one of them grows at a time. Times are ratios to greedy
decoding of the same form, interleaved with it in one process. With `--memory`, peaks of memory: each is that
of a process of its own that answers once, less what it has when the model and the prompt are there; on a GPU,
of what is allocated.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
import typer
from rich.console import Console
from rich.progress import track
from transformers import LogitsProcessorList, PreTrainedModel

import vlmfix
from benchmarks.overhead import IMAGE_TOKENS, Processor, acting, random_inputs, random_llava

METHODS = ("var", "pai", "vhr", "dola", "vcd", "fastv")


class Form(NamedTuple):
    """What is asked: images of 576 tokens each, sequences, beams of each, new tokens."""

    images: int = 1
    batch_size: int = 1
    beams: int = 1
    tokens: int = 16

    def __str__(self) -> str:
        tokens = self.images * IMAGE_TOKENS
        return f"{tokens} image tokens, batch {self.batch_size}, {self.beams} beams, {self.tokens} new"


FORMS = (
    Form(),
    Form(images=4),
    Form(images=16),
    Form(batch_size=8),
    Form(batch_size=32),
    Form(beams=3),
    Form(beams=10),
    Form(tokens=512),
)


class FirstScores:
    """A processor that notes when the first token is about to be chosen."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.time:
            if scores.is_cuda:
                torch.cuda.synchronize()
            self.time = time.perf_counter()
        return scores


def answer(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], form: Form, method: vlmfix.Method | None
) -> tuple[float, float]:
    """Seconds of an answer, and of what follows the scores of its first token."""
    processor: Any = Processor()  # in the place of one of transformers
    first = FirstScores()
    start = time.perf_counter()
    with method(model, processor) if method else nullcontext():
        generate: Any = model.generate  # of GenerationMixin, unknown to the type of the model
        generate(
            **inputs,
            max_new_tokens=form.tokens,
            min_new_tokens=form.tokens,
            num_beams=form.beams,
            do_sample=False,
            logits_processor=LogitsProcessorList([first]),
        )
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    end = time.perf_counter()
    return end - start, end - first.time


def times(model: PreTrainedModel, name: str, size: str, form: Form, rounds: int) -> tuple[float, float]:
    """Ratio of the whole answer to greedy decoding, and of what follows its first token."""
    inputs = random_inputs(model, form.batch_size, form.images)
    whole, rest = [], []
    for acts in (None, acting(name, size)):  # a warm-up
        answer(model, inputs, form._replace(tokens=1), acts)
    for _ in range(rounds):
        plain, steered = (answer(model, inputs, form, acts) for acts in (None, acting(name, size)))
        whole.append(steered[0] / plain[0])
        rest.append(steered[1] / plain[1])
    return statistics.median(whole), statistics.median(rest)


def peak(name: str, size: str, device: str, dtype: str, form: Form) -> float:
    """MiB that one answer takes at most, beside the model and the prompt; in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, size, device, dtype, form))


def _peak(name: str, size: str, device: str, dtype: str, form: Form) -> float:
    model = random_llava(size, device=device, dtype=getattr(torch, dtype), kernel="sdpa")
    inputs = random_inputs(model, form.batch_size, form.images)
    method = None if name == "greedy" else acting(name, size)
    answer(model, random_inputs(model, 1, 1), Form(tokens=2), method)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        answer(model, inputs, form, method)
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    with Resident() as watch:
        answer(model, inputs, form, method)
    return watch.most - watch.before


class Resident:
    """Looks at the memory of this process while something is done, in MiB."""

    def __init__(self) -> None:
        self.before = self.most = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.005):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20


def main(
    size: Annotated[str, typer.Option(help="Text model: small, 0.3b or 7b.")] = "small",
    method: Annotated[list[str] | None, typer.Option(help="Methods; one of each class by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds after a warm-up of one token.")] = 2,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="torch dtype.")] = "float32",
    memory: Annotated[bool, typer.Option("--memory", help="Peaks of memory in the place of times.")] = False,
) -> None:
    """Print a table of ratios to greedy decoding, a row a form of the question, as each is measured."""
    names = method or list(METHODS)
    console = Console(width=160, highlight=False, soft_wrap=True)

    def row(*cells: str) -> None:
        console.print(f"| {' | '.join(cells)} |", markup=False)

    console.print(f"random LLaVA {size}, {dtype}, {device}: ratios to greedy decoding")
    if not memory:
        console.print("whole answer (without its first token)")
    row("", *names)
    row(*["---"] * (1 + len(names)))
    if memory:
        for form in (Form(), Form(images=4), Form(images=16), Form(batch_size=8)):
            plain = peak("greedy", size, device, dtype, form)
            found = [
                peak(name, size, device, dtype, form) for name in track(names, str(form), transient=True)
            ]
            row(f"{form} ({plain:.0f} MiB)", *(f"{each / plain:.3f}" for each in found))
        return
    model = random_llava(size, device=device, dtype=getattr(torch, dtype), kernel="sdpa")
    for form in FORMS:
        ratios = [times(model, name, size, form, rounds) for name in track(names, str(form), transient=True)]
        row(str(form), *(f"{whole:.2f} ({rest:.2f})" for whole, rest in ratios))


if __name__ == "__main__":
    typer.run(main)
