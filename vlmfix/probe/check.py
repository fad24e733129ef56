"""Probe inputs made by the processor of a model, and the whole check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine.compatibility import check_model, distrust, stock_model, trust
from vlmfix.engine.modules import input_device
from vlmfix.engine.phases import visual_tokens
from vlmfix.inference.chat import prepare, render
from vlmfix.methods.base import Method
from vlmfix.methods.registry import list_methods
from vlmfix.models.markup import image_item
from vlmfix.models.structure import text_decoder
from vlmfix.probe.self_tests import Probe, ProbeInputs, SelfTest, self_tests
from vlmfix.probe.verdicts import Verdict, verdicts

QUESTIONS = ("What is in the image?", "Is there a dog in the image? Answer with one word, yes or no.")
_SIZES = ((224, 168), (168, 224))


class Check(NamedTuple):
    """What was found out about a model.

    Args:
        tests: the self-tests of the engine.
        verdicts: one for each method.
    """

    tests: list[SelfTest]
    verdicts: list[Verdict]


def check(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    methods: Mapping[str, Method] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Check:
    """Run the self-tests of the engine on a model, and each method on the same prompts.

    Args:
        model: loaded; it leaves as it came, but for methods that fail: they are refused on it from then on.
        processor: of the model.
        methods: which, by name; None: see `trials`.
        progress: gets the name of what is tried next.

    Raises:
        UnsupportedError: no method supports the model, with the reason.
        ValueError: the processor takes no picture and question.
    """
    model = stock_model(model)
    check_model(model)
    trust(model)
    progress("self-tests")
    inputs = probe_inputs(model, processor)
    probe = Probe(model, processor, inputs)
    if methods is None:
        methods = trials(model, inputs)
    tests = self_tests(probe)
    found: list[Verdict] = []
    for name, method in methods.items():
        progress(name)
        found += verdicts(probe, tests, {name: method})
        if found[-1].state == "fails":
            distrust(model, method, found[-1].reason)
    return Check(tests, found)


def trials(model: PreTrainedModel, inputs: ProbeInputs) -> dict[str, Method]:
    """All methods that act inside `generate`, by name; where the defaults are for one model, at values
    that fit any."""
    layers = len(text_decoder(model).layers)
    visual, _ = visual_tokens(model, inputs.batch, None)
    tokens = int(visual.sum(dim=1).min())
    stages = (1, max(2, layers // 2))
    kept = {"kept_tokens": max(1, tokens // 2)}
    of_any: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("cdpruner", "kmeans", "mmtok", "prunesid", "similarity_filter"), kept),
        "opera": {"penalty_weights": 1000.0, "scale_factor": 500.0},
        "paint": {"local_boost": 0.5, "summary_boost": 0.4},
        "random_tokens": kept,
        "uniform_grid": kept,
        "visionzip": {"dominant_tokens": max(1, tokens // 3), "contextual_tokens": max(1, tokens // 6)},
        "pyramid_drop": {"prune_layers": stages, "keep_ratios": (0.5, 0.25)},
        "sparsevlm": {"prune_layers": stages, "kept_tokens": (max(2, tokens // 2), max(1, tokens // 4))},
        "vdd": {"reference": "no_image"},
    }
    return {name: cls(**of_any.get(name, {})) for name, cls in list_methods().items() if cls.attaches}


def probe_inputs(model: PreTrainedModel, processor: ProcessorMixin) -> ProbeInputs:
    """Two questions about two drawn pictures of different shapes.

    Raises:
        ValueError: the processor refuses them.
    """
    pictures = [_picture(size, seed) for seed, size in enumerate(_SIZES)]
    others = [_picture(size, seed + len(_SIZES)) for seed, size in enumerate(_SIZES)]

    def made(images: list[Image.Image], rows: slice = slice(None)) -> Mapping[str, Any]:
        inputs = prepare([[image] for image in images[rows]], QUESTIONS[rows], processor)
        return inputs.to(input_device(model), dtype=model.dtype)

    return ProbeInputs(
        batch=made(pictures),
        singles=[made(pictures, slice(row, row + 1)) for row in range(len(QUESTIONS))],
        without_images=_without_images(model, processor),
        other_images=made(others),
    )


def _without_images(model: PreTrainedModel, processor: ProcessorMixin) -> Mapping[str, Any] | None:
    item = image_item(processor)
    texts = [render(question, 1, processor) for question in QUESTIONS]
    if any(item not in text for text in texts):
        return None
    call: Any = processor
    words = [text.replace(item, "") for text in texts]
    try:
        inputs = call(text=words, padding=True, padding_side="left", return_tensors="pt")
    except Exception:  # some processors want a picture
        return None
    moved: Mapping[str, Any] = inputs.to(input_device(model))
    return moved


def _picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Coarse blocks of colour, which no average over a patch washes out."""
    blocks = numpy.random.default_rng(seed).integers(0, 256, (size[1] // 28, size[0] // 28, 3), dtype="uint8")
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
