"""Decode steps on static caches, as they are and compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, LogitsProcessorList, PreTrainedModel, StaticCache

import vlmfix
from tests.support import families
from tests.support.methods import acting, attached, built, with_flash_attention
from vlmfix.engine import few_rows
from vlmfix.engine.caches import read_cache, with_cache
from vlmfix.engine.capabilities import ReadsEarlyExits
from vlmfix.engine.context import DecodeContext

TOKENS = 5
STATIC = {"cache_implementation": "static"}


@pytest.fixture
def inputs(llava: PreTrainedModel) -> dict[str, torch.Tensor]:
    return families.prompt("llava", llava, (1, 2, 0))


def generate(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> Any:
    output = model.generate(
        **inputs,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )
    return output.sequences, torch.stack(output.logits), read_cache(output)


def static_cache(model: PreTrainedModel, length: int) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=length)


@pytest.mark.parametrize("name", ["var", "vcd", "icd", "fastv"])
def test_cache_holds_what_was_read(
    name: str, llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    """Also where branches have rows of their own, or layers fewer tokens."""
    given = static_cache(llava, inputs["input_ids"].shape[1] + TOKENS + 7)
    with attached(name, llava):
        tokens, logits, grown = generate(llava, inputs)
        again, static, used = generate(llava, with_cache(llava, inputs, given))
    assert used is given
    assert torch.equal(again, tokens)
    torch.testing.assert_close(static, logits, atol=1e-4, rtol=1e-4)
    for own, other in zip(given.layers, grown.layers, strict=True):
        length = int(own.cumulative_length)
        assert length == other.get_seq_length()
        torch.testing.assert_close(own.keys[:, :, :length], other.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own.values[:, :, :length], other.values, atol=1e-4, rtol=1e-4)
        assert not own.keys[:, :, length:].any()


@pytest.mark.parametrize(
    "names",
    [("pai", "var", "vhr"), ("fastv", "gift", "vcd"), ("vaf", "adhh", "dola"), ("devils", "pai")],
    ids="+".join,
)
def test_methods_together(
    names: tuple[str, ...], llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    found = []
    for kwargs in ({}, STATIC):
        methods = [acting(name) for name in names]
        with ExitStack() as stack:
            for method in methods:
                stack.enter_context(method(llava, families.PROCESSOR))
            _, logits, _ = generate(llava, inputs, **kwargs)
        found.append((logits, [[row[:5] for row in each.latest_edit_stats()] for each in methods]))
    (growing, counted), (static, again) = found
    torch.testing.assert_close(static, growing, atol=1e-4, rtol=1e-4)
    assert again == counted


# One of each form: weights, heads and scores, with sizes and without, exits, branches, pruning, the stream.
COMPILED = ["var", "vhr", "gift", "pai", "adhh", "head_pursuit", "dola", "vcd", "fastv", "vista"]


def compiling(**kwargs: Any) -> dict[str, Any]:
    config = CompileConfig(fullgraph=True, mode=None, **kwargs)
    config._compile_all_devices = True  # type: ignore[assignment]  # typed by its default, None
    return {**STATIC, "compile_config": config}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.usefixtures("fresh_compiler")
def test_step_is_one_graph_that_stays(name: str) -> None:
    """No break in the step, and other prompts, answers and blocks compile nothing new."""
    family = "qwen2_5_vl"
    model = built(family)
    settings = compiling(backend="eager")
    shorter = (1, 0, 1) if name != "fastv" else (0, 1, 2)  # slots of what it keeps depend on the length
    for samples in ((1, 2, 0), shorter):
        prompts = families.prompt(family, model, samples)
        with attached(name, model):
            tokens, logits, _ = generate(model, prompts)
            given = with_cache(model, prompts, static_cache(model, 60))
            again, compiled, _ = generate(model, given, compile_config=settings["compile_config"])
        assert torch.equal(again, tokens)
        torch.testing.assert_close(compiled, logits, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "samples"), [("dola", (1, 2, 0)), ("dola", (1,)), ("vcd", (1, 2, 0))])
@pytest.mark.usefixtures("fresh_compiler")
def test_few_rows_are_in_the_graph(
    name: str, samples: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where machines take few rows in ways of their own, here by blocks and one by one."""
    monkeypatch.setattr(few_rows, "helps", lambda: True)
    monkeypatch.setattr(few_rows, "_BLOCK", 16)
    model = built("qwen2_5_vl")
    prompts = families.prompt("qwen2_5_vl", model, samples)
    for _ in range(2):
        with attached(name, model):
            growing = generate(model, prompts)[1]
            compiled = generate(model, prompts, **compiling(backend="eager"))[1]
        torch.testing.assert_close(compiled, growing, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@dataclass(frozen=True, kw_only=True)
class OwnRow(vlmfix.Method, ReadsEarlyExits):
    """Makes another row of an exit than as it is or normed."""

    identity_parameters: ClassVar = {"strength": 0}
    strength: float = 1

    def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
        return (1,)

    def extra_hidden_states(self, context: DecodeContext, hidden_states: torch.Tensor) -> list[torch.Tensor]:
        return [context.early_exits[1] * self.strength]

    def edit_logits(
        self, context: DecodeContext, logits: torch.Tensor, branches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return logits + branches[0]


class OwnHead(torch.nn.Linear):
    """Of another class, as those of quantised models are."""


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "own"])
@pytest.mark.parametrize(("name", "exits"), [("dola", 2), ("deco", 2), ("sla", 1), ("own", 1)])
def test_head_reads_exits_beside_the_newest_tokens(
    name: str,
    exits: int,
    is_plain: bool,
    inputs: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one go, where head and method are such that it can be compiled with the step."""
    model = built("llava")
    head: Any = model.get_output_embeddings()
    if not is_plain:
        monkeypatch.setattr(head, "__class__", OwnHead)
    rows: list[int] = []
    with OwnRow()(model) if name == "own" else attached(name, model):
        tokens, logits, _ = generate(model, inputs)
        handle = head.register_forward_hook(lambda *given: rows.append(given[2].shape[:-1].numel()))
        again, static, _ = generate(model, inputs, **STATIC)
        handle.remove()
    assert torch.equal(again, tokens)
    torch.testing.assert_close(static, logits, atol=1e-4, rtol=1e-4)
    batch = len(tokens)
    one_go, two = [batch * (1 + exits)], [batch, batch * exits]
    checks = [batch]  # of the head, against the first logits
    steps = (one_go if is_plain and name != "own" else two) * (TOKENS - 1)
    assert rows == [*one_go, *checks, *steps]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with attached("var", llava), attached("vhr", llava):
        tokens, logits, _ = generate(llava, inputs)
        again, compiled, _ = generate(llava, inputs, **compiling())
    assert torch.equal(again, tokens)
    torch.testing.assert_close(compiled, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_stock_step_stays_stock(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Compiled before a block, it is not taken for that of a method, nor the other way round."""
    settings = compiling(backend="eager")
    stock = generate(llava, inputs, **settings)[1]
    with attached("pai", llava):
        edited = generate(llava, inputs, **settings)[1]
        growing = generate(llava, inputs)[1]
    torch.testing.assert_close(edited, growing, atol=1e-4, rtol=1e-4)
    assert (edited - stock).abs().max() > 1e-3
    assert torch.equal(generate(llava, inputs, **settings)[1], stock)


def test_hooks_that_compiled_steps_would_pass_over(
    llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    with attached("var", llava):
        seen: list[Any] = []
        hook = llava.register_forward_hook(lambda *given: seen.append(given[2].logits.shape))
        try:
            with pytest.raises(vlmfix.UnsupportedError, match="hooks on LlavaForConditionalGeneration"):
                generate(llava, inputs, **compiling(backend="eager"))
            generate(llava, inputs, **STATIC)
        finally:
            hook.remove()
    assert len(seen) == TOKENS


def test_gate_is_refused(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with (
        vlmfix.PAI(gate="entropy:0.3")(llava),
        pytest.raises(vlmfix.UnsupportedError, match="PAI with a gate"),
    ):
        generate(llava, inputs, **STATIC)


def test_cache_that_is_too_short_is_refused(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    length = inputs["input_ids"].shape[1]
    given = with_cache(llava, inputs, static_cache(llava, length + TOKENS - 2))
    with attached("vhr", llava), pytest.raises(vlmfix.UnsupportedError, match="lower max_new_tokens"):
        generate(llava, given)
    with attached("vhr", llava):
        generate(llava, with_cache(llava, inputs, static_cache(llava, length + TOKENS - 1)))


def test_filled_static_cache_is_refused(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    cache = static_cache(llava, 100)
    with attached("vhr", llava):
        first = generate(llava, with_cache(llava, inputs, cache))[0]
        with pytest.raises(vlmfix.UnsupportedError, match="filled already"):
            generate(llava, with_cache(llava, inputs, cache))
        cache.reset()
        assert torch.equal(generate(llava, with_cache(llava, inputs, cache))[0], first)


def test_pass_by_hand_is_refused(llava: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    given = with_cache(llava, inputs, static_cache(llava, 100))
    with attached("vhr", llava), pytest.raises(vlmfix.UnsupportedError, match="StaticCache"):
        llava(**given)


def test_flash_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_flash_attention("llava", monkeypatch)
    prompts = families.prompt("llava", model, (1, 2))
    with attached("vhr", model), pytest.raises(vlmfix.UnsupportedError, match="'flash_attention_2'"):
        generate(model, prompts, **STATIC)


def test_eager_attention(inputs: dict[str, torch.Tensor]) -> None:
    model = built("llava", attn_implementation="eager")
    with attached("vaf", model):
        growing, static = (generate(model, inputs, **kwargs)[1] for kwargs in ({}, STATIC))
    torch.testing.assert_close(static, growing, atol=1e-4, rtol=1e-4)


def test_failed_call_leaves_the_model_as_it_was(
    llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    def stop(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > inputs["input_ids"].shape[1] + 1:
            raise RuntimeError("stop")
        return scores

    generate(llava, inputs, **STATIC)
    before = families.fingerprint(llava)
    with attached("var", llava):
        with pytest.raises(RuntimeError, match="stop"):
            generate(llava, inputs, logits_processor=LogitsProcessorList([stop]), **STATIC)
        growing, static = (generate(llava, inputs, **kwargs)[1] for kwargs in ({}, STATIC))
        torch.testing.assert_close(static, growing, atol=1e-4, rtol=1e-4)
    assert families.fingerprint(llava) == before


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (vlmfix.make_method("sid"), "SID decodes branches in passes or with weights of their own"),
        (vlmfix.VCD(fused=False), "VCD decodes branches in passes"),
        (
            vlmfix.make_method("fastv", position_scheme="renumber"),
            "FastV counts the tokens that it keeps anew",
        ),
        (vlmfix.make_method("tame"), "TAME cannot act in steps of one shape"),
    ],
    ids=["selection", "separate", "renumbered", "queries"],
)
def test_what_has_no_place_in_a_static_cache(
    method: vlmfix.Method, message: str, llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    before = families.fingerprint(llava)
    with method(llava, families.PROCESSOR), pytest.raises(vlmfix.UnsupportedError, match=message):
        generate(llava, inputs, **STATIC)
    assert families.fingerprint(llava) == before


def test_exits_of_a_model_that_caps_its_logits_are_refused(
    llava: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    """They go through its output head alone there, and through the model on a growing cache."""

    def capped(module: Any, args: Any, output: Any) -> Any:
        output.logits = 0.1 * torch.tanh(output.logits / 0.1)
        return output

    handle = llava.register_forward_hook(capped)
    try:
        with attached("dola", llava):
            generate(llava, inputs)
            with pytest.raises(vlmfix.UnsupportedError, match=r"caps or scales .* DoLa reads"):
                generate(llava, inputs, **STATIC)
    finally:
        handle.remove()
