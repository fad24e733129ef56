"""Settings with which methods act on random models, and how tests attach them and measure."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vlmfix
from tests.support import families
from tests.support.names import FAMILIES, QUICK, UNLIKE
from vlmfix.engine.kernels import ATTRIBUTE

METHODS = vlmfix.list_methods()

ATTACHED = [name for name, cls in METHODS.items() if cls.attaches]
"""Methods that act inside `model.generate`; what runs it several times (CARVE) or acts from outside
(baselines of the prompt and of the decoding) has its promises in its own tests."""

_NOT_CLIP = ("internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_REFUSED = {
    "visionzip": ("llava_onevision", "internvl"),
    "mmtok": ("llava_onevision", "internvl"),
    "prunesid": ("llava_onevision", "internvl"),
    "damro": ("llava_onevision", *_NOT_CLIP),
    "paint": ("llava_onevision", *_NOT_CLIP),
    "registers": _NOT_CLIP,
    "tome": set(FAMILIES) - {QUICK},
    "mctf": set(FAMILIES) - {QUICK},
}
REFUSED = {(name, family) for name, others in _REFUSED.items() for family in others}
"""Methods with families that they refuse."""

_FOLDER = Path(tempfile.mkdtemp(prefix="vlmfix-directions-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def directions(method: str, name: str, *shape: int) -> str:
    """A file of random directions for all families, whose text decoders have one shape."""
    random = torch.randn(families.LAYERS, *shape, families.HIDDEN, generator=torch.Generator().manual_seed(0))
    if shape:  # orthonormal rows
        random = torch.linalg.qr(random.mT).Q.mT.contiguous()
    size = {"num_hidden_layers": str(families.LAYERS), "hidden_size": str(families.HIDDEN)}
    save_file({name: random}, _FOLDER / method, metadata={"method": method, **size})
    return str(_FOLDER / method)


ATTENTION_TO_TEXT: dict[str, Any] = {
    "real": tuple(tuple(0.2 + 0.02 * (layer + head) for head in range(4)) for layer in range(5)),
    "hallucinated": tuple(tuple(0.1 + 0.04 * head for head in range(4)) for _ in range(5)),
}

# Random models have weak sinks and flat attention; methods not named here act at their defaults.
ACTING: dict[str, dict[str, Any]] = {
    "var": {
        "moved_fraction": 0.9,
        "sink_dimensions": (families.SINK_DIMENSION,),
        "sink_threshold": 2.5,
        "min_image_mass": 0.05,
        "min_non_sink_share": 0.1,
    },
    "adaptinfer": {"prune_layers": (1, 2), "kept_tokens": (3, 1)},
    "pyramid_drop": {"prune_layers": (1, 3), "keep_ratios": (0.5, 0.25)},
    "sparsevlm": {"prune_layers": (1, 2), "kept_tokens": (2, 1)},
    "divprune": {"keep_ratio": 0.3},
    "dyvte": {"exit_layer": 1},
    "kmeans": {"kept_tokens": 2},
    "random_tokens": {"kept_tokens": 2},
    "uniform_grid": {"kept_tokens": 2},
    "similarity_filter": {"kept_tokens": 2},
    "cdpruner": {"kept_tokens": 2},
    "mmtok": {"kept_tokens": 2},
    "prunesid": {"kept_tokens": 3},
    "visionzip": {"dominant_tokens": 2, "contextual_tokens": 1},
    "mctf": {"merged_per_layer": 3, "first_layer": 0},
    "tome": {"merged_per_layer": 3},
    "m3id": {"decay": 0.1, "beta": 0.001},
    "lcd": {"beta": 0.001},
    "sid": {"beta": 0.001},
    "avisc": {"beta": 0.001},
    "damro": {"beta": 0.001, "top_k": 3},
    "code": {"caption_tokens": 4, "alpha": 3.0},
    "causalmm": {"beta": 0.001, "vision_edit": None, "text_edit": "reversed_normalised"},
    "visual_entropy": {"alpha": 5.0, "gamma": None},
    "crops": {"beta": 0.001, "decay": 0.1},
    "icd": {"beta": 0.001},
    "ritual": {"beta": 0.001},
    "vdd": {"beta": 0.001, "unknown_token_id": 4},
    "flb": {"gamma": 3.0, "decay": 0.5},
    "pai": {"alpha": 1.0},
    "paint": {"local_boost": 2.0, "summary_boost": 1.0},
    "devils": {"alpha": 2.0},
    "vaf": {"enhance": 2.0, "suppress": 0.5},
    "adhh": {"threshold": 0.1, "heads": tuple((layer, head) for layer in (1, 2, 3) for head in (0, 1, 3))},
    "act": {"sink_ratio": 1.2, "sink_keep_fraction": 0.1, "heads": "all", "first_layer": 1},
    "eah": {"threshold": 0.015},
    "ilvad": {"tau": 1.05, "probe_tokens": 3},
    "iat": {"alpha": 3.0},
    "adaiat": {"beta": 1.0, **ATTENTION_TO_TEXT},
    "head_pursuit": {"heads": ((1, 0), (2, 3))},
    "baseline.output_shift": {"delta": 4.0, "yes_ids": (7, 8), "no_ids": (9,)},
    "baseline.plausibility": {"beta": 0.7},
    "baseline.sharpen": {"beta": 0.001},
    "baseline.text_contrast": {"beta": 0.001},
    "vti": {"alpha_text": 5.0, "directions": directions("vti", "text")},
    "nullu": {"layers": (1, 4), "directions": directions("nullu", "subspaces", 4)},
    "registers": {"neurons": tuple((0, neuron) for neuron in (1, 5, 9, 20, 30))},
    "gift": {"saliency_layer": 2, "enhanced_layers": (1, 3), "image_boost": 5.0},
}

# What the profile of tiny-llava has no value for, or several.
NOT_IN_PROFILE: dict[str, dict[str, Any]] = {
    "act": {"heads": "all"},
    "head_pursuit": {"concept": "colours"},
    "registers": {"neurons": ((0, 1),)},
    "paint": {"local_boost": 0.7, "summary_boost": 0.4},
    "pyramid_drop": {"prune_layers": (1, 3), "keep_ratios": (0.5, 0.25)},
    "shield": {"parts": ("bias",)},
    "sparsevlm": {"prune_layers": (1, 2), "kept_tokens": (2, 1)},
    "vdd": {"unknown_token_id": 0},
}


def acting(name: str) -> vlmfix.Method:
    """The method with settings that change a random model's answers."""
    return METHODS[name](**ACTING.get(name, {}))


def attached(name: str, model: PreTrainedModel) -> AbstractContextManager[None]:
    """The model under the method at these settings."""
    return acting(name)(model, families.PROCESSOR)


def plain(*names: str) -> dict[str, Any]:
    """How the stock model decodes as it does under the methods, but for a loop of their own."""
    kwargs: dict[str, Any] = {}
    for name in names:
        kwargs = acting(name).decoding(kwargs)
    kwargs.pop("custom_generate", None)
    return kwargs


def under(model: PreTrainedModel, **kwargs: Any) -> dict[str, Any]:
    """Arguments of `generate` as the attached methods want them; greedy if nothing else is said."""
    kwargs = {"do_sample": False, **kwargs}
    attachment = vars(model.get_decoder()).get(ATTRIBUTE)
    for method in () if attachment is None else attachment.methods:
        kwargs = method.decoding(kwargs)
    return kwargs


def values(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    """What `generate` did, finely measured: raw logits of every generated position, `(steps, batch,
    vocabulary)`; of a search with several beams, their scores, `(1, batch, beams)`."""
    kwargs = under(model, return_dict_in_generate=True, **kwargs)
    beams = kwargs.get("num_beams", 1)
    if beams == 1:
        return torch.stack(model.generate(**inputs, output_logits=True, **kwargs).logits)
    output = model.generate(**inputs, output_scores=True, num_return_sequences=beams, **kwargs)
    return output.sequences_scores.view(1, -1, beams)


def with_flash_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A random model under a stand-in with the interface of FlashAttention 2: 2-D masks, and one prompt in
    running positions; built once a family, and every test must leave it as it is."""

    def flash(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        queries, keys = query.shape[2], key.shape[2]
        visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
        positions = kwargs.get("position_ids")
        if attention_mask is not None:
            assert attention_mask.shape == (query.shape[0], keys)
            visible = visible & attention_mask[:, None, None].bool()
        elif positions is not None and queries > 1 and len(positions) == 1:
            assert (positions.diff() == 1).all()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, visible, **kwargs)

    model = built(family)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", flash)
    monkeypatch.setattr(type(model.get_decoder()), "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setattr(model.get_decoder().config, "_attn_implementation", "flash_attention_2")
    return model


@functools.cache
def built(family: str, **kwargs: Any) -> PreTrainedModel:
    """A random model in another form than the fixture's; every test must leave it as it is."""
    return families.build(family, **kwargs)


OF_SETTINGS = {
    "identity_parameters",
    "is_identity",
    "needs_processor",
    "parameter_files",
    "resolve",
    "search_space",
    "takes_gate",
}
OF_REPORTS = {"edit_sites", "report", "inactive_reason"}
"""Members that the engine reads before or after a run, and that tell nothing of what it does in one."""


def hook_signature(cls: type[vlmfix.Method]) -> frozenset[str]:
    """What a method overrides of its bases in the engine: all that the engine can tell of it in a run."""
    of_bases = {base for base in cls.__mro__ if _is_base(base)}
    capabilities = {base.__name__ for base in of_bases}
    names = {name for base in of_bases for name in vars(base) if not name.startswith("_")}
    overridden = {name for base in set(cls.__mro__) - of_bases for name in names & vars(base).keys()}
    return frozenset(capabilities | overridden) - OF_SETTINGS - OF_REPORTS


def _is_base(cls: type) -> bool:
    """Whether it is of those that all methods share: the hooks, their capabilities, and their base."""
    return cls.__module__.startswith("vlmfix.engine.") or cls.__module__ == "vlmfix.methods.base"


def representatives(names: Sequence[str]) -> list[str]:
    """One method of each hook signature, the one with most passes: what holds of the engine under it holds
    under its like."""
    found: dict[frozenset[str], str] = {}
    for name in sorted(names, key=lambda name: -METHODS[name].info.forwards):
        found.setdefault(hook_signature(METHODS[name]), name)
    return [name for name in names if name in found.values()]


def cases(names: Sequence[str], *, in_turn: bool = False) -> list[tuple[str, str]]:
    """The `pairs` of methods and families that are not refused."""
    return [case for case in pairs(names, in_turn=in_turn) if case not in REFUSED]


def in_turn(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every name with one family, which take turns, as far as it is not refused there."""
    turns = [FAMILIES[start:] + FAMILIES[:start] for start in range(len(FAMILIES))]
    return [
        (name, next(each for each in turns[index % len(turns)] if (name, each) not in REFUSED))
        for index, name in enumerate(names)
    ]


def unlike(number: int, *names: str) -> str:
    """One of the families that are unlike, in turn, as far as none of the methods refuses it."""
    first, second = UNLIKE[number % 2], UNLIKE[(number + 1) % 2]
    return second if any((name, first) in REFUSED for name in names) else first


def pairs(names: Sequence[Any], *, in_turn: bool = False) -> list[tuple[Any, str]]:
    """Every name with every family; `in_turn`: with one of the two that are unlike and one of the others."""
    if not in_turn:
        return list(product(names, FAMILIES))
    others = [family for family in FAMILIES if family not in UNLIKE]
    return [
        (name, family)
        for index, name in enumerate(names)
        for family in (UNLIKE[index % 2], others[index % len(others)])
    ]
