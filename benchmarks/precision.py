"""What half precision changes in the logits of every method, beside what it changes in plain decoding.

    python -m benchmarks.precision --model tiny-llava

A method writes captions in float32. In half precision it then reads the same tokens, one step after the
other, so that a token on which the two disagree moves nothing after it. What moved is the probability that
the next token has in one and not in the other (total variation); agreement is the share of the steps with the
same likeliest token. A method adds nothing where as much moved as in plain decoding; a contrast multiplies
differences of logits, and their rounding with them.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, ProcessorMixin

import vlmfix
from benchmarks.answers import Setting, Split
from benchmarks.effects import GREEDY, SEED
from benchmarks.grid import GRID
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.inference.chat import prepare

DTYPES = ("bfloat16", "float16")


class Deviation(NamedTuple):
    """How far half precision is from float32 in the steps of all answers.

    Args:
        moved: mean total variation between the distributions of the next token, in [0, 1].
        largest: the largest one of a step.
        agreement: share of the steps with the same likeliest token.
    """

    moved: float
    largest: float
    agreement: float


class _Written(LogitsProcessor):
    """Lets `generate` write given tokens, `(batch, prompt and new tokens)`."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = self._tokens[:, input_ids.shape[1], None]
        return torch.full_like(scores, -torch.inf).scatter_(1, wanted, 0.0)


def read(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: dict[str, Any],
    setting: Setting,
    new_tokens: int,
    written: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Prompts with the new tokens, `(batch, tokens)`, and the logits before each, `(batch, new, vocabulary)`.

    Args:
        inputs: of the prompts, in the dtype of the model.
        setting: of one method, or greedy.
        new_tokens: that are written at most.
        written: what a first call gave, to be written again; None: what the method writes.
    """
    with ExitStack() as stack:
        for method in setting.build() if setting != GREEDY else []:
            stack.enter_context(method(model, processor))
        generate: Any = model.generate  # of GenerationMixin, unknown to the type of the model
        output = generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            logits_processor=None if written is None else [_Written(written)],
        )
    return output.sequences, torch.stack(output.logits, dim=1).float()


def deviation(logits: Tensor, half: Tensor, real: Tensor) -> Deviation:
    """See `Deviation`.

    Args:
        logits: in float32, `(batch, steps, vocabulary)`; minus infinity where a method rules a token out.
        half: the same steps in half precision.
        real: steps before the answer has ended, `(batch, steps)` bool.
    """
    shares, others = (each.double().softmax(dim=-1) for each in (logits, half))
    moved = ((shares - others).abs().sum(dim=-1) / 2)[real]
    agreement = (logits.argmax(dim=-1) == half.argmax(dim=-1))[real]
    return Deviation(float(moved.mean()), float(moved.max()), float(agreement.double().mean()))


def measure(
    models: list[PreTrainedModel], processor: ProcessorMixin, split: Split, setting: Setting, new_tokens: int
) -> list[Deviation]:
    """How far each model but the first is from the first, in captions of all scenes that the first writes.

    Raises:
        UnsupportedError: the method does not go with the model.
        ValueError: a value of the method does not fit the model, or nobody knows it.
    """
    images, prompts = split.prompts("captions")
    inputs = prepare([[image] for image in images], prompts, processor)
    whole, *halves = models
    written, logits = read(whole, processor, dict(inputs), setting, new_tokens)
    new = written[:, -logits.shape[1] :]
    ended = new == whole.generation_config.eos_token_id
    real = ended.cumsum(dim=1) - ended.long() == 0
    found = []
    for half in halves:
        own = {
            key: value.to(half.dtype) if value.is_floating_point() else value for key, value in inputs.items()
        }
        _, seen = read(half, processor, own, setting, new_tokens, written)
        found.append(deviation(logits, seen, real))
    return found


def main(
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id.")] = "tiny-llava",
    method: Annotated[list[str] | None, typer.Option(help="Methods; all by default.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Scenes, captioned in one batch.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a caption at most.")] = 32,
) -> None:
    """Print how far half precision is from float32 under every method, and under plain decoding."""
    whole, processor = vlmfix.load(model, dtype="float32")
    models = [whole, *(vlmfix.load(model, dtype=dtype)[0] for dtype in DTYPES)]
    table = Table("method", box=MARKDOWN)
    for dtype in DTYPES:
        for column in ("moved", "of greedy's", "largest", "agreement"):
            table.add_column(f"{dtype} {column}", justify="right")
    known = [
        name
        for name, cls in vlmfix.list_methods().items()
        if cls.attaches and not issubclass(cls, ChoosesTokens)
    ]
    split = Split("test", SEED, count)
    plain: list[Deviation] = []
    refused: list[str] = []
    for name in track(["greedy", *(method or known)], description="methods", transient=True):
        setting = GREEDY if name == "greedy" else Setting(name, GRID.get(name, [{}])[0])
        try:
            found = measure(models, processor, split, setting, tokens)
        except (vlmfix.UnsupportedError, ValueError) as error:
            refused.append(f"{name} is refused: {error}")
            continue
        plain = plain or found
        cells = [
            (
                f"{each.moved:.1e}",
                f"{each.moved / of.moved:.2f}",
                f"{each.largest:.1e}",
                f"{each.agreement:.3f}",
            )
            for each, of in zip(found, plain, strict=True)
        ]
        table.add_row(name, *(cell for row in cells for cell in row))
    heading = f"{model}, {count} captions of {tokens} tokens at most"
    Console(width=200).print(heading, table, *refused, sep="\n", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
