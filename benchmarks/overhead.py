"""Cost of every method as a ratio to plain greedy decoding, on a random LLaVA, prefill and decode apart.

    python -m benchmarks.overhead --size 0.3b

Each round times the stock model and the method one after the other; the ratio is the median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from itertools import pairwise
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.generation import BaseStreamer

import vlmfix

SIZES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    },
    "0.3b": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
IMAGE_TOKEN = 32000
QUESTION_TOKENS = 24

# Random weights have no massive activations; these settings make a method act as it does on trained ones.
ACTING: dict[str, dict[str, Any]] = {
    "var": {
        "sink_dimensions": (0, 1),
        "sink_threshold": 1.0,
        "min_image_mass": 0.0,
        "min_non_sink_share": 0.0,
    }
}


def random_llava(size: str, *, device: str, dtype: torch.dtype, kernel: str) -> PreTrainedModel:
    """LLaVA-1.5 of the given text size with random weights and a small vision tower, 576 tokens an image."""
    text = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, **SIZES[size]}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 336,
        "patch_size": 14,
    }
    config = AutoConfig.for_model(
        "llava", text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=kernel)
    return model.eval()


def random_inputs(model: PreTrainedModel, batch_size: int) -> dict[str, torch.Tensor]:
    """One image and a short question a sample."""
    words = torch.randint(10, 1000, (batch_size, QUESTION_TOKENS))
    image = torch.full((batch_size, 576), IMAGE_TOKEN)
    input_ids = torch.cat([words[:, :8], image, words[:, 8:]], dim=1).to(model.device)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(batch_size, 3, 336, 336, dtype=model.dtype, device=model.device),
    }


class Clock(BaseStreamer):
    """Notes when the prompt goes in and when each token comes out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # already on the CPU, so the device has finished
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def time_once(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], tokens: int, method: vlmfix.Method | None
) -> tuple[float, float]:
    """Milliseconds of the prefill and, as a median, of one decoded token."""
    clock = Clock()
    with method(model) if method else nullcontext():
        model.generate(
            **inputs, max_new_tokens=tokens + 1, min_new_tokens=tokens + 1, do_sample=False, streamer=clock
        )
    prefill, *decode = [1000 * (after - before) for before, after in pairwise(clock.times)]
    return prefill, statistics.median(decode)


def measure(
    model: PreTrainedModel, method: vlmfix.Method | None, *, tokens: int, rounds: int, batch_size: int
) -> dict[str, float]:
    """Medians over the rounds: milliseconds of prefill and per decoded token, and their ratios to greedy."""
    inputs = random_inputs(model, batch_size)
    samples = []
    for _ in track(range(rounds + 1), description=type(method).__name__.lower(), transient=True):
        greedy, steered = (time_once(model, inputs, tokens, each) for each in (None, method))
        samples.append((*steered, steered[0] / greedy[0], steered[1] / greedy[1]))
    names = ("prefill", "decode", "prefill ratio", "decode ratio")
    warm = samples[1:]
    return {
        name: statistics.median(values) for name, values in zip(names, zip(*warm, strict=True), strict=True)
    }


def main(
    size: Annotated[str, typer.Option(help="Text model: small, 0.3b or 7b.")] = "small",
    method: Annotated[list[str] | None, typer.Option(help="Methods; all by default.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Decoded tokens that are timed.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds after one warm-up.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="torch dtype.")] = "float32",
    kernel: Annotated[str, typer.Option(help="Attention of the stock model.")] = "sdpa",
) -> None:
    """Print the cost of every method relative to plain greedy decoding in the same run."""
    model = random_llava(size, device=device, dtype=getattr(torch, dtype), kernel=kernel)
    table = Table(
        title=f"random LLaVA {size}, {dtype}, {kernel}, {device}, batch {batch_size}, 600 prompt tokens"
    )
    for column in ("method", "prefill ms", "prefill ratio", "decode ms/token", "decode ratio"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name in ["greedy", *(method or vlmfix.methods())]:
        steered = None if name == "greedy" else vlmfix.make_method(name, **ACTING.get(name, {}))
        result = measure(model, steered, tokens=tokens, rounds=rounds, batch_size=batch_size)
        table.add_row(
            name,
            f"{result['prefill']:.1f}",
            f"{result['prefill ratio']:.3f}",
            f"{result['decode']:.2f}",
            f"{result['decode ratio']:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
