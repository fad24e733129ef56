"""Answers a second of the evaluation harness, against lmms-eval's own loop over the same questions.

    make .venv-integrations/ready
    .venv-integrations/bin/python -m benchmarks.lmms_eval_loop --images 10
    .venv-integrations/bin/python -m benchmarks.lmms_eval_loop --task chair --images 32

`lmms-eval` is `generate_until` of its class `LlavaHf`, unchanged, with one prompt a call as it wants it; all
else that lmms-eval does, such as the reading of data and the scoring, is left out. It is told a `device_map`,
as the empty one that it has by default is refused by transformers 5. `vlmfix` is a worker of `vlmfix eval`,
without a method and with its records on the disk. Both load the weights from one folder, in which the model
was saved, and use its chat template. Rounds alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from lmms_eval.api.instance import Instance
from lmms_eval.models.simple.llava_hf import LlavaHf
from PIL import Image
from rich.console import Console
from rich.table import Table

import vlmfix
from benchmarks.eval_throughput import PROTOCOLS, captions, in_harness, questions, timed
from vlmfix.evaluation.sample import Sample
from vlmfix.inference.chat import render

# Under which lmms-eval looks up what a request is about.
_TASK, _SPLIT = "vlmfix", "test"


def in_lmms_eval(model: Any, samples: Sequence[Sample], new_tokens: int) -> list[str]:
    """Answers of lmms-eval's loop.

    Args:
        model: its `LlavaHf`.
        samples: with a picture each.
        new_tokens: length limit of an answer.
    """
    model.task_dict = {_TASK: {_SPLIT: dict(enumerate(samples))}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(
                sample.prompt,
                {"max_new_tokens": new_tokens, "temperature": 0},
                _pictures,
                number,
                _TASK,
                _SPLIT,
            ),
            idx=0,
            metadata={"task": _TASK, "doc_id": number, "repeats": 1},
        )
        for number, sample in enumerate(samples)
    ]
    texts: list[str] = model.generate_until(requests)
    return texts


def _pictures(sample: Sample) -> list[Image.Image]:
    """As tasks of lmms-eval give them."""
    assert sample.image is not None
    return [Image.open(sample.image).convert("RGB")]


def their_prompt(model: Any, question: str) -> str:
    """What lmms-eval asks, as its loop makes it."""
    turn = {"role": "user", "content": f"<image>\n{question}"}
    text: str = model.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    return text


def main(
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id; a LLaVA.")] = "tiny-llava",
    task: Annotated[Literal["pope", "chair"], typer.Option(help="Questions, or captions.")] = "pope",
    images: Annotated[
        int, typer.Option(min=1, help="Images, each with up to 18 questions or one caption.")
    ] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per forward pass of vlmfix.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 3,
    device: Annotated[str, typer.Option(help="Device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="dtype of the weights.")] = "float32",
) -> None:
    """Print answers a second, the ratio of each round, and how many answers and prompts differ."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part in vlmfix.load(model, dtype=dtype):
            part.save_pretrained(folder / "model")
        own = vlmfix.load(str(folder / "model"), dtype=dtype, device_map=None if device == "cpu" else device)
        theirs = LlavaHf(str(folder / "model"), device=device, device_map=device, dtype=dtype)
        samples = (questions if task == "pope" else captions)(folder / "data", images)
        new_tokens = PROTOCOLS[task].max_new_tokens
        speeds: list[tuple[float, float]] = []
        in_lmms_eval(theirs, samples[:2], new_tokens)  # what only the first answer costs
        in_harness(*own, [], samples[:2], 2, folder / "first", task=task)
        for number in range(rounds):
            loop = partial(in_lmms_eval, theirs, samples, new_tokens)
            one, texts = timed(loop, len(samples))
            harness = partial(in_harness, *own, [], samples, batch_size, folder / f"{number}", task=task)
            other, own_texts = timed(harness, len(samples))
            speeds.append((one, other))
        prompts = {sample.prompt for sample in samples}
        worded = sum(their_prompt(theirs, each) != render(each, 1, own[1]) for each in prompts)
        differing = [
            pair for pair in zip(texts, own_texts, strict=True) if pair[0].strip() != pair[1].strip()
        ]
    table = Table("task", "lmms-eval", "vlmfix", "ratio", "answers that differ", "prompts that differ")
    ratios = [other / one for one, other in speeds]
    table.add_row(
        task,
        *(f"{median(each):.1f}/s ({min(each):.1f} to {max(each):.1f})" for each in zip(*speeds, strict=True)),
        f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
        f"{len(differing)} of {len(samples)}",
        f"{worded} of {len(prompts)}",
    )
    console = Console(width=140)
    console.print(table)
    for one_text, own_text in differing[:3]:
        console.print(f"lmms-eval: {one_text!r}; vlmfix: {own_text!r}", markup=False)


if __name__ == "__main__":
    typer.run(main)
