"""Answers a second of the evaluation harness, against one prompt at a time, on the synthetic data.

    python -m benchmarks.eval_throughput --model tiny-llava --images 20
    python -m benchmarks.eval_throughput --model tiny-llava --task chair --images 128

Each row is one method, attached in the same way in all columns. `one at a time` opens a picture, processes it
and calls `model.generate` with one prompt, which is the loop of `llava_hf` in lmms-eval. `batches` calls it
with as many prompts as the harness, each with its image to encode and read. `harness` is a worker of
`vlmfix eval`, with its records on the disk; its answers are compared with those of the first column, in
float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from vlmfix.evals.chair.dataset import chair_samples
from vlmfix.evals.pope.dataset import pope_samples

import vlmfix
from vlmfix.engine import tokens
from vlmfix.evaluation.datasets.synthetic.synthetic import SEED, synthetic_folder
from vlmfix.evaluation.runner.records import Draw
from vlmfix.evaluation.runner.run_store import RunStore
from vlmfix.evaluation.runner.worker import Worker
from vlmfix.evaluation.runner.writing import write_down
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import default_protocol
from vlmfix.inference.chat import prepare
from vlmfix.inference.output import read_answers
from vlmfix.inference.pictures import open_images

PROTOCOLS = {task: default_protocol(task, "synthetic").on("synthetic") for task in ("pope", "chair")}


def captions(folder: Path, images: int) -> list[Sample]:
    """The prompts of the synthetic CHAIR about so many images."""
    folder_of_data = synthetic_folder(folder, count=images, seed=SEED)
    samples: list[Sample] = chair_samples(folder_of_data, PROTOCOLS["chair"])
    return samples


def questions(folder: Path, images: int) -> list[Sample]:
    """The synthetic POPE questions about the first images that have some, image by image."""
    samples = pope_samples(synthetic_folder(folder, count=4 * images, seed=SEED), PROTOCOLS["pope"])
    chosen = sorted({sample.cluster for sample in samples})[:images]
    return sorted(
        (sample for sample in samples if sample.cluster in chosen),
        key=lambda sample: (sample.cluster, sample.id),
    )


def in_batches(
    model: Any, processor: Any, samples: Sequence[Sample], size: int, *, task: str = "pope"
) -> list[str]:
    """Answers of plain `generate` calls, without anything shared between prompts."""
    texts = []
    kwargs = {"max_new_tokens": PROTOCOLS[task].max_new_tokens, "do_sample": False}
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        pictures = [open_images(sample.image) for sample in batch]
        inputs = prepare(pictures, [sample.prompt for sample in batch], processor).to(
            model.device, dtype=model.dtype
        )
        output = model.generate(**inputs, **kwargs)
        answers = read_answers(output, inputs["attention_mask"], tokens.end_tokens(model, kwargs), processor)
        texts += [answer.text for answer in answers]
    return texts


def in_harness(
    model: Any,
    processor: Any,
    methods: Sequence[vlmfix.Method],
    samples: Sequence[Sample],
    size: int,
    folder: Path,
    *,
    task: str = "pope",
) -> list[str]:
    """Answers of a worker of the harness."""
    run = RunStore.start(folder, {}, {}, info={})
    worker = Worker(model, processor, methods, PROTOCOLS[task], lambda *_: {}, size)
    answers = worker.answers([Draw(sample, 0, 0, "") for sample in samples])
    write_down(run, "0-of-1", answers, max_errors=0)
    done = run.read({(sample.id, 0): None for sample in samples}).done
    return [done[sample.id, 0]["text"] for sample in samples]


def timed(work: Callable[[], list[str]], samples: int) -> tuple[float, list[str]]:
    """Answers a second, and the answers."""
    start = time.perf_counter()
    texts = work()
    return samples / (time.perf_counter() - start), texts


def main(
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id.")] = "tiny-llava",
    task: Annotated[Literal["pope", "chair"], typer.Option(help="Questions, or captions.")] = "pope",
    method: Annotated[list[str] | None, typer.Option(help="Methods; repeatable.")] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Images, each with up to 18 questions or one caption.")
    ] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the fastest counts.")] = 3,
    device: Annotated[str, typer.Option(help="Device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="dtype of the weights.")] = "float32",
) -> None:
    """Print answers a second and how many answers differ."""
    loaded = vlmfix.load(model, dtype=dtype, device_map=None if device == "cpu" else device)
    table = Table("method", "one at a time", "batches", "harness", "gain", "answers that differ")
    with TemporaryDirectory() as temporary:
        samples = (questions if task == "pope" else captions)(Path(temporary), images)
        for name in method or ["greedy", "var", "gift"]:
            methods = [] if name == "greedy" else [vlmfix.make_method(name)]
            speeds: list[list[float]] = [[], [], []]
            texts: list[list[str]] = [[], [], []]
            for number in track(range(rounds), name, console=Console(stderr=True), transient=True):
                with ExitStack() as stack:
                    for each in methods:
                        stack.enter_context(each(*loaded))
                    works = [
                        partial(in_batches, *loaded, samples, size, task=task) for size in (1, batch_size)
                    ]
                    results = [timed(work, len(samples)) for work in works]
                folder = Path(temporary) / f"{name}-{number}"
                work = partial(in_harness, *loaded, methods, samples, batch_size, folder, task=task)
                results.append(timed(work, len(samples)))
                for column, (speed, answers) in enumerate(results):
                    speeds[column].append(speed)
                    texts[column] = answers
            best = [max(each) for each in speeds]
            differing = sum(one != other for one, other in zip(texts[0], texts[2], strict=True))
            table.add_row(
                name,
                *(f"{each:.0f}/s" for each in best),
                f"{best[2] / best[0]:.1f}",
                f"{differing} of {len(samples)}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
