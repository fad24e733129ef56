"""Who calls: threads, tasks and pools get what a single thread gets, and none comes back plain in a block."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import attached
from vlmfix.engine import callers
from vlmfix.engine.caches import read_cache, with_cache

NAMES = ("", "var", "vcd", "vhr", "gift", "fastv")
"""Methods whose answers differ; "" is plain."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(callers, "PATIENCE", 0.3)
    yield
    assert threading.Thread.start is callers._start
    assert ThreadPoolExecutor.submit is callers._submit


def generate(model: PreTrainedModel, **kwargs: Any) -> Tensor:
    inputs = families.prompt("llava", model, (1, 2))
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, **kwargs)


def under(name: str, model: PreTrainedModel) -> Tensor:
    if not name:
        return generate(model)
    with attached(name, model):
        return generate(model)


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` gives in a thread that belongs to no block."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    callers._start(thread)
    thread.join(30)
    [result] = results
    return result


class AtStep(LogitsProcessor):
    """Does something at a step of `generate`."""

    def __init__(self, step: int, act: Callable[[], Any]) -> None:
        self.left, self.act = step, act

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            self.act()
        return scores


def test_every_thread_gets_what_it_would_get_alone(llava: PreTrainedModel) -> None:
    alone = {name: under(name, llava) for name in NAMES}
    assert all(not torch.equal(alone[name], alone[""]) for name in NAMES[1:])
    jobs = [NAMES[(3 * number) % len(NAMES) - number // 4] for number in range(18)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda name: under(name, llava), jobs))
    for name, result in zip(jobs, results, strict=True):
        assert torch.equal(result, alone[name]), name
    assert "generate" not in vars(llava)


def test_text_in_text_out_in_threads(loaded: tuple[Any, Any]) -> None:
    """Prompts about one picture share its encoding, for which the model is patched in each call."""

    def said(method: str | None) -> list[str]:
        prompts = ["Describe the image.", "Is there a fork in the image?"]
        return vlmfix.generate(*loaded, "docs/scene.png", prompts, method, max_new_tokens=6)

    jobs = [None, "vcd", None, "vhr", None, "m3id"]
    alone = [said(method) for method in jobs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(said, jobs)) == alone
    assert type(loaded[1].image_processor).__module__.startswith("transformers.")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_call_that_began_before_the_block_stays_plain(model: PreTrainedModel, family: str) -> None:
    first, second = (families.prompt(family, model, counts) for counts in ((1, 2), (2,)))
    ways: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(**first, **ways)
    with attached("vcd", model):
        steered = model.generate(**second, **ways)
    begun, go_on = threading.Event(), threading.Event()
    wait = AtStep(3, lambda: (begun.set(), go_on.wait(10)))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(model.generate, **first, **ways, logits_processor=[wait])
        begun.wait(10)
        with attached("vcd", model):
            results = [model.generate(**second, **ways)]
            go_on.set()
            results += [model.generate(**second, **ways) for _ in range(2)]
        assert torch.equal(other.result(), plain)
    assert all(torch.equal(result, steered) for result in results)


def test_pools_and_tasks(llava: PreTrainedModel) -> None:
    var, vhr = under("var", llava), under("vhr", llava)
    pool = ThreadPoolExecutor(2)
    list(pool.map(abs, range(8)))  # its threads are older than the block
    with attached("var", llava):
        assert torch.equal(pool.submit(generate, llava).result(), var)
        assert torch.equal(
            pool.submit(
                llava.generate, **families.prompt("llava", llava, (1, 2)), max_new_tokens=8, do_sample=False
            ).result(),
            var,
        )
    pool.shutdown()

    async def steered(name: str) -> Tensor:
        with attached(name, llava):
            return await asyncio.to_thread(generate, llava)

    async def tasks() -> list[Any]:
        whole = [asyncio.to_thread(under, name, llava) for name in ("var", "vhr")]
        return [
            *await asyncio.gather(*whole),
            await steered("vhr"),
            *await asyncio.gather(steered("var"), steered("vhr"), return_exceptions=True),
        ]

    first, second, third, fourth, refused = asyncio.run(tasks())
    assert torch.equal(first, var)
    assert torch.equal(fourth, var)
    assert torch.equal(second, vhr)
    assert torch.equal(third, vhr)
    with pytest.raises(vlmfix.UnsupportedError, match=r"another asyncio task .* inside a block of VAR"):
        raise refused


@pytest.mark.slow
def test_a_thread_without_part_in_the_block_is_refused_in_time(llava: PreTrainedModel) -> None:
    with attached("var", llava):
        for work in (generate, lambda model: under("vhr", model)):
            error = in_thread(lambda work=work: work(llava))
            with pytest.raises(vlmfix.UnsupportedError, match="'MainThread' is inside a block of VAR"):
                raise error
    assert torch.equal(in_thread(lambda: generate(llava)), generate(llava))


def test_leaving_waits_for_the_call_of_another_thread(llava: PreTrainedModel) -> None:
    steered, begun, results = under("var", llava), threading.Event(), []
    with attached("var", llava):
        work = AtStep(1, begun.set)
        thread = threading.Thread(target=lambda: results.append(generate(llava, logits_processor=[work])))
        thread.start()
        begun.wait(10)
    thread.join(10)
    assert torch.equal(results[0], steered)
    assert torch.equal(generate(llava), under("", llava))


def test_two_loops_of_passes_on_one_block(llava: PreTrainedModel) -> None:
    both_read = threading.Barrier(2)

    def loop(seed: int) -> str:
        with torch.no_grad():
            output = llava(**families.prompt("llava", llava, (1,), seed=seed), use_cache=True)
            both_read.wait(10)
            try:
                token = output.logits[:, -1:].argmax(dim=-1)
                llava(input_ids=token, **with_cache(llava, {}, read_cache(output)))
            except vlmfix.UnsupportedError as error:
                return str(error)
        return ""

    with attached("var", llava), ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(loop, (1, 2)))
    assert said[0] == ""
    assert "another cache than that of the prompt read last" in said[1]


def test_calls_past_the_block_are_refused(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    before = llava.generate
    past = {
        "went past the block of VAR": [
            lambda: before(**inputs, max_new_tokens=2),
            lambda: type(llava).generate(llava, **inputs, max_new_tokens=2),
        ],
        "called past the block of VAR": [
            lambda: llava.forward(**inputs),
            lambda: llava.model(**inputs),
            lambda: llava.get_decoder()(input_ids=inputs["input_ids"]),
        ],
    }
    for message, calls in past.items():
        for call in calls:
            with attached("var", llava), pytest.raises(vlmfix.UnsupportedError, match=message):
                call()
    with attached("var", llava):
        inside, shallow = llava.generate, copy.copy(llava)
        assert torch.equal(generate(shallow), generate(llava))
    for late in (inside, shallow.generate):
        with pytest.raises(vlmfix.UnsupportedError, match="inside a block that has ended"):
            late(**inputs, max_new_tokens=2)


def test_inside_generate(llava: PreTrainedModel) -> None:
    block = attached("var", llava)
    acts = {
        "inside a generate call": lambda: generate(llava),
        "VHR cannot be attached while": lambda: under("vhr", llava),
        "was left while generate was at work": lambda: block.__exit__(None, None, None),
    }
    for message, act in acts.items():
        with pytest.raises(vlmfix.UnsupportedError, match=message), block:
            generate(llava, logits_processor=[AtStep(2, act)])
    assert torch.equal(generate(llava), under("", llava))


def test_a_block_is_entered_once_at_a_time_and_stays_until_left(llava: PreTrainedModel) -> None:
    block, steered = attached("var", llava), under("var", llava)
    for _ in range(2):
        with block:
            with pytest.raises(vlmfix.UnsupportedError, match="has been entered and not left"), block:
                pass
            assert torch.equal(generate(llava), steered)
    model = families.build("llava")
    attached("var", model).__enter__()  # nobody keeps it
    left = [caller for caller in callers._open_callers if caller.label == "VAR"]
    assert torch.equal(generate(model), under("var", families.build("llava")))
    for caller in left:
        callers.turns_of(model).leave(caller)


def test_copies_and_files(llava: PreTrainedModel, tmp_path: Path) -> None:
    with attached("var", llava):
        for copied in (copy.deepcopy, pickle.dumps, lambda model: torch.save(model, io.BytesIO())):
            with pytest.raises(vlmfix.UnsupportedError, match="cannot be copied or pickled"):
                copied(llava)
        llava.save_pretrained(tmp_path)
    assert "vlmfix" not in (tmp_path / "config.json").read_text()


def test_changes_of_the_model_inside_the_block() -> None:
    model = families.build("llava")
    inputs = families.prompt("llava", model, (1,))
    with attached("var", model):
        model.set_attn_implementation("eager")
        with pytest.raises(vlmfix.UnsupportedError, match="changed inside the block"):
            generate(model)
    with attached("var", model):
        model.get_decoder().compile()
        with pytest.raises(vlmfix.UnsupportedError, match="is compiled"):
            generate(model)
    model = families.build("llava").train()
    model.gradient_checkpointing_enable()
    with attached("var", model), pytest.raises(vlmfix.UnsupportedError, match="gradient checkpointing"):
        model(**inputs)
    with attached("var", model), pytest.raises(vlmfix.UnsupportedError, match="cannot be traced"):
        torch.export.export(model.eval(), (), inputs, strict=False)


def test_tuples(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    with attached("vcd", llava), torch.no_grad():
        output = llava(**inputs, output_hidden_states=True)
        values = llava(**inputs, output_hidden_states=True, return_dict=False)
    assert isinstance(values, tuple)
    assert len(values) == len(output.to_tuple())
    assert torch.equal(values[0], output.logits)
