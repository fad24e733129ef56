"""Cost of every method as a ratio to plain greedy decoding, on a random LLaVA, prefill and decode apart.

    python -m benchmarks.overhead --size 0.3b
    python -m benchmarks.overhead --size 0.3b --method adaptinfer --images 4 --tokens 16
    python -m benchmarks.overhead --size 0.3b --method vcd --questions 8 --tokens 1

Each round runs the stock model and the method one after the other; the ratio is the median over the rounds.
Methods that ask several times (CARVE) or decode in a loop of their own (OPERA) are left out, as their cost
depends on what they find, and so are controls that leave the model alone.
"""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.generation.streamers import BaseStreamer

import vlmfix
from vlmfix.engine.caches import read_cache
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.engine.prefix_cache import shared_prefix
from vlmfix.engine.vision_cache import cached_vision
from vlmfix.models.directions import write_directions
from vlmfix.models.profiles import Profile
from vlmfix.settings import configs_directory

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
IMAGE_TOKENS = 576
QUESTION_TOKENS = 24

_FOLDER = Path(tempfile.mkdtemp(prefix="vlmfix-directions-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def acting(name: str, size: str) -> vlmfix.Method:
    """The method as it acts on LLaVA-1.5-7B: layers at the same depths, and settings for random weights."""
    layers, heads = SIZES[size]["num_hidden_layers"], SIZES[size]["num_attention_heads"]
    profile = Profile.read(configs_directory() / "models" / "llava-1.5-7b.yaml")

    def at(layer: int) -> int:
        return layer * layers // 32

    listed = [(at(layer), head * heads // 32) for layer, head in profile.get("adhh_heads")]
    published: dict[str, dict[str, Any]] = {
        "var": {
            "sink_dimensions": (0, 1),
            "sink_threshold": 1.0,
            "min_image_mass": 0.0,
            "min_non_sink_share": 0.0,
        },
        "gift": {"saliency_layer": at(11), "enhanced_layers": (at(12), at(22)), "image_boost": 5.0},
        "vhr": {"num_last_layers": at(14), "extra_layers": (1,)},
        "adhh": {
            "threshold": 0.0,
            "heads": listed,
        },
        "act": {"heads": [pair for pair in listed if 2 <= pair[0] < layers - 1]},
        "adaiat": {
            "real": [[0.5] * heads] * layers,
            "hallucinated": [[0.4] * heads] * layers,
        },
        "head_pursuit": {"heads": listed},
        "vti": {"directions": _random_directions("vti", size, "text")},
        "nullu": {"directions": _random_directions("nullu", size, "subspaces", 4)},
        "adaptinfer": {
            "prune_layers": (at(1), at(10), at(20)),
            "kept_ratios": (133 / IMAGE_TOKENS, 27 / 133, 3 / 27),
        },
        "dyvte": {"exit_layer": at(16)},
        "mctf": {"first_layer": 0},
        "registers": {"neurons": [(0, neuron) for neuron in range(10)]},
        "paint": {"local_boost": 0.7, "summary_boost": 0.4},
        "fastv": {"start_layer": max(at(2), 1)},
        "pyramid_drop": {"prune_layers": (at(8), at(16), at(24))},
        "vdd": {"unknown_token_id": 0},
        "flb": {"beta": 0.9},
        "sparsevlm": {"prune_layers": (at(2), at(6) + 1, at(15) + 1), "kept_tokens": (66, 30, 17)},
        "baseline.output_shift": {"yes_ids": (1,), "no_ids": (2,)},
        "baseline.plausibility": {"beta": 0.9},
    }
    return vlmfix.make_method(name, **published.get(name, {}))


def _random_directions(method: str, size: str, name: str, *shape: int) -> str:
    """A file of random directions, orthonormal where there are several in a layer."""
    layers, hidden = SIZES[size]["num_hidden_layers"], SIZES[size]["hidden_size"]
    drawn = torch.randn(layers, *shape, hidden, generator=torch.Generator().manual_seed(0))
    if shape:
        drawn = torch.linalg.qr(drawn.mT).Q.mT
    path = _FOLDER / f"{method}-{size}.safetensors"
    write_directions(path, method, config_of(size), {name: drawn})
    return str(path)


def random_llava(size: str, *, device: str, dtype: torch.dtype, kernel: str) -> PreTrainedModel:
    """LLaVA-1.5 of the given text size with random weights and a small vision tower, 576 tokens an image."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            config_of(size), dtype=dtype, attn_implementation=kernel
        )
    model.eval()
    return model


def config_of(size: str) -> PreTrainedConfig:
    """Of the model of this text size."""
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
    config: PreTrainedConfig = AutoConfig.for_model(
        "llava", text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN
    )
    return config


class Processor:
    """What methods need to read a prompt of random words and to make pixels."""

    chat_template = None
    image_token = "<image>"
    image_processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3)

    def __init__(self) -> None:
        words = {f"w{token}": token for token in range(1000)} | {self.image_token: IMAGE_TOKEN}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), bos_token="w1"
        )


def random_inputs(
    model: PreTrainedModel, batch_size: int, images: int, questions: int = 1
) -> dict[str, torch.Tensor]:
    """Images a sample, and short questions about them, one prompt each."""
    before = torch.randint(10, 1000, (batch_size, 8)).repeat_interleave(questions, dim=0)
    words = torch.randint(10, 1000, (batch_size * questions, QUESTION_TOKENS - 8))
    image = torch.full((batch_size * questions, images * IMAGE_TOKENS), IMAGE_TOKEN)
    input_ids = torch.cat([before, image, words], dim=1).to(model.device)
    pixels = torch.randn(batch_size, images, 3, 336, 336, dtype=model.dtype, device=model.device)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixels.repeat_interleave(questions, dim=0).flatten(0, 1),
    }


class Clock(BaseStreamer):
    """Notes when the prompt goes in and when each token comes out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # already on the CPU, so the device has finished
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Cost(NamedTuple):
    """Milliseconds of the prefill, of a decoded token (median), of the answer; elements of the cache."""

    prefill: float
    decode: float
    answer: float
    cache: float


def measure_once(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    tokens: int,
    method: vlmfix.Method | None,
    *,
    shares: bool = False,
    **generate_kwargs: Any,
) -> Cost:
    """Generate once under the method; prompts may share what they begin with, as they do in the harness."""
    clock = Clock()
    processor: Any = Processor()  # in the place of one of transformers
    with ExitStack() as stack:
        if method:
            stack.enter_context(method(model, processor))
        if shares:
            stack.enter_context(cached_vision(model))
            stack.enter_context(shared_prefix(model))
        generate: Any = model.generate  # of GenerationMixin, unknown to the type of the model
        output = generate(
            **inputs,
            max_new_tokens=tokens + 1,
            min_new_tokens=tokens + 1,
            do_sample=False,
            streamer=clock,
            return_dict_in_generate=True,
            **generate_kwargs,
        )
    prefill, *decode = [1000 * (after - before) for before, after in pairwise(clock.times)]
    cache = sum(layer.keys.numel() + layer.values.numel() for layer in read_cache(output).layers)
    return Cost(prefill, statistics.median(decode), prefill + sum(decode), cache)


def measure_rounds(
    model: PreTrainedModel,
    method: vlmfix.Method | None,
    *,
    tokens: int,
    rounds: int,
    batch_size: int,
    images: int,
    questions: int = 1,
) -> tuple[list[Cost], list[Cost]]:
    """The cost of each round after one to warm up, and its ratio to greedy in the same round."""
    inputs = random_inputs(model, batch_size, images, questions)
    costs, ratios = [], []
    for _ in track(range(rounds + 1), description=type(method).__name__.lower(), transient=True):
        greedy, steered = (
            measure_once(model, inputs, tokens, each, shares=questions > 1) for each in (None, method)
        )
        costs.append(steered)
        ratios.append(Cost(*(ours / plain for ours, plain in zip(steered, greedy, strict=True))))
    return costs[1:], ratios[1:]


def median(costs: Sequence[Cost]) -> Cost:
    """Of each figure by itself."""
    return Cost(*map(statistics.median, zip(*costs, strict=True)))


def main(
    size: Annotated[str, typer.Option(help="Text model: small, 0.3b or 7b.")] = "small",
    method: Annotated[list[str] | None, typer.Option(help="Methods; all by default.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Decoded tokens that are timed.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds after one warm-up.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    images: Annotated[int, typer.Option(min=1, help="Images of 576 tokens in a prompt.")] = 1,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions about the images of a sample, read as the harness does.")
    ] = 1,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="torch dtype.")] = "float32",
    kernel: Annotated[str, typer.Option(help="Attention of the stock model.")] = "sdpa",
    separate: Annotated[
        bool,
        typer.Option("--separate", help="Also contrastive methods whose branches have passes of their own."),
    ] = False,
) -> None:
    """Print the cost of every method relative to plain greedy decoding in the same run."""
    model = random_llava(size, device=device, dtype=getattr(torch, dtype), kernel=kernel)
    prompt = images * IMAGE_TOKENS + QUESTION_TOKENS
    table = Table(
        title=f"random LLaVA {size}, {dtype}, {kernel}, {device}, batch {batch_size * questions}, {prompt} "
        f"prompt tokens, {tokens} new ones"
    )
    columns = (
        "prefill ms",
        "prefill ratio",
        "decode ms/token",
        "decode ratio",
        "answer ratio",
        "cache ratio",
    )
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="right")
    known = [
        name
        for name, cls in vlmfix.list_methods().items()
        if cls.attaches and not issubclass(cls, ChoosesTokens)
    ]
    rows: dict[str, vlmfix.Method | None] = {"greedy": None}
    for name in method or known:
        acts = acting(name, size)
        rows[name] = acts
        if separate and acts.owns_logits and "fused" in acts.parameters:
            rows[f"{name}, separate passes"] = dataclasses.replace(acts, fused=False)  # type: ignore[call-arg]
    for name, steered in rows.items():
        measured = measure_rounds(
            model,
            steered,
            tokens=tokens,
            rounds=rounds,
            batch_size=batch_size,
            images=images,
            questions=questions,
        )
        cost, ratio = map(median, measured)
        table.add_row(
            name,
            f"{cost.prefill:.1f}",
            f"{ratio.prefill:.3f}",
            f"{cost.decode:.2f}",
            f"{ratio.decode:.3f}",
            f"{ratio.answer:.3f}",
            f"{ratio.cache:.3f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
