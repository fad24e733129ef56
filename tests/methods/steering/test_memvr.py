"""MemVR: the vectors of its specification, and the model row by row."""

from __future__ import annotations

import functools
import math
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import answered
from tests.support.methods import values
from vlmfix.methods.steering.memvr import look_up, mix, top_entropy

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")


@pytest.mark.parametrize(("first", "entropy"), [(3, 0.722154), (8, 0.031902)])
def test_vector_of_the_gate(first: float, entropy: float) -> None:
    logits = torch.tensor([first, 2.5, 2, 1.5, 1, 0.5, 0, -0.5, -1, -1.5, -4, -5])
    torch.testing.assert_close(top_entropy(logits[None]), torch.tensor([entropy]), atol=1e-6, rtol=0)


READ = torch.tensor([[[1, 0, 2], [0.5, -1, 1]]])
IMAGE = torch.tensor([[[0.0, 0, 0], [1, 2, 0], [0, 1, -1]]])
ADDED = torch.tensor([[[0.2, -0.4, 0.6], [0.1, 0.3, -0.5]]])


def test_vector_of_the_edit() -> None:
    found = look_up(READ, IMAGE)
    torch.testing.assert_close(found, torch.tensor([[[1, 0, 2], [-1.5, -5, 2]]]))
    sizes = torch.stack([each.abs().sum() for each in (ADDED, found)]).expand(1, 2, 2)
    fires = torch.tensor([[True, True]])
    edited = mix(ADDED, found, sizes, fires, ratio=0.12)
    expected = torch.tensor([[[0.197913, -0.352, 0.571826], [0.05513, 0.154435, -0.396174]]])
    torch.testing.assert_close(edited, expected, atol=1e-6, rtol=0)


def test_rows_that_do_not_fire_or_find_nothing_stay() -> None:
    sizes = torch.tensor([[[1.0, 2.0], [1.0, 0.0]]])
    found = look_up(READ, IMAGE) * torch.tensor([1.0, 0.0])[:, None]
    for fires in ([False, True], [False, False]):
        assert torch.equal(mix(ADDED, found, sizes, torch.tensor([fires]), ratio=0.5), ADDED)


def retraced(
    model: PreTrainedModel, single: dict[str, Tensor], new: list[int], layers: range, threshold: float
) -> tuple[Tensor, set[int]]:
    """Logits after a prompt and its answer so far, read whole, row by row, and the layers that edited."""
    decoder, ratio = model.get_decoder(), 0.12
    ids = single["input_ids"][0].tolist()
    image: list[Tensor] = []
    had: set[int] = set()
    now: dict[int, bool] = {}
    edited: set[int] = set()

    def enter(layer: int, args: Any) -> None:
        stream = args[0][0]
        if layer == 0:
            image.extend(stream[place] for place, token in enumerate(ids) if token == families.IMAGE_TOKEN)
        now.clear()
        for row in range(len(ids) - 1, len(stream)) if layer in layers else ():
            top = model.get_output_embeddings()(decoder.norm(stream[row])).topk(10).values.double().softmax(0)
            entropy = -sum(float(each) * math.log(float(each)) for each in top) / math.log(10)
            now[row] = row not in had and entropy > threshold
            if now[row]:
                had.add(row)
                edited.add(layer)

    def after(args: Any, output: Tensor) -> Tensor:
        if not any(now.values()):
            return output
        states, added = args[0][0].double(), output[0].double()
        tokens = torch.stack(image).double()
        found = torch.stack([sum((state @ token) * token for token in tokens) for state in states])
        mixed = added.clone()
        groups = [list(range(len(ids))), *([row] for row in range(len(ids), len(states)))]
        for group in groups:
            if now[group[-1]]:
                scale = added[group].abs().mean() / found[group].abs().mean()
                mixed[group] = (1 - ratio) * added[group] + ratio * scale * found[group]
        return mixed[None].to(output)

    with ExitStack() as stack:
        for index, layer in enumerate(decoder.layers):
            hook = layer.register_forward_pre_hook(lambda _, args, index=index: enter(index, args))
            stack.callback(hook.remove)
            stack.callback(
                layer.mlp.register_forward_hook(lambda _, args, output: after(args, output)).remove
            )
        with torch.no_grad():
            return model(**answered(single, new), use_cache=False).logits[0, -1].float(), edited


@functools.cache
def decided(family: str) -> PreTrainedModel:
    """A random model of which some tokens are likelier than others, so that entropies differ."""
    model = families.build(family)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(12.0)
    return model


@pytest.mark.parametrize(("family", "threshold"), [("llava", 0.93), ("qwen2_5_vl", 0.93)])
def test_the_model_row_by_row(family: str, threshold: float) -> None:
    """Prompts of several images, in a batch, with a cache; some rows fire early, some late and some never."""
    model = decided(family)
    inputs = families.prompt(family, model, (1, 2, 0))
    method = vlmfix.MemVR(threshold=threshold, layers=(1, 4))
    with method(model):
        found = values(model, inputs, max_new_tokens=4)
    edited: list[set[int]] = []
    for row, single in enumerate(families.split(family, model, inputs)[:2]):
        new: list[int] = []
        for step in range(4):
            logits, layers = retraced(model, single, new, range(1, 4), threshold)
            torch.testing.assert_close(found[step, row], logits, atol=1e-4, rtol=1e-4)
            new.append(int(logits.argmax()))
            edited.append(layers)
    assert method.edit_stats().layers_edited == sorted(set().union(*edited))
    assert len({frozenset(each) for each in edited}) > 1


def test_with_last_rows_read_again_the_prompt_stays_as_it_was() -> None:
    """What another method edits in the last row does not reach back to the others, cache or no cache."""
    llava = decided("llava")
    inputs = families.prompt("llava", llava, (1, 2))
    method = vlmfix.MemVR(threshold=0.93, layers=(1, 4))
    with method(llava), vlmfix.FADE(alpha=0.9, layers=(0, 3))(llava):
        found = values(llava, inputs, max_new_tokens=3)
        uncached = values(llava, inputs, max_new_tokens=3, use_cache=False)
    torch.testing.assert_close(uncached, found, atol=1e-4, rtol=1e-4)


def test_it_says_why_it_never_fired() -> None:
    llava, method = decided("llava"), vlmfix.MemVR(threshold=1.0)
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match=r"threshold=1 \(the largest was 0\.\d+\); lower")
    with warns, method(llava):
        values(llava, families.prompt("llava", llava), max_new_tokens=2)
    assert method.edit_stats().site_share == 0


def test_a_model_that_caps_its_logits_is_refused(llava: PreTrainedModel) -> None:
    def capped(module: Any, args: Any, output: Any) -> Any:
        output.logits = 0.1 * torch.tanh(output.logits / 0.1)
        return output

    handle = llava.register_forward_hook(capped)
    try:
        with vlmfix.MemVR()(llava), pytest.raises(vlmfix.UnsupportedError, match="caps or scales"):
            values(llava, families.prompt("llava", llava), max_new_tokens=1)
    finally:
        handle.remove()


def test_layers_of_other_depths(llava: PreTrainedModel) -> None:
    def of(depth: int) -> tuple[int, int] | None:
        llava.config.text_config.num_hidden_layers = depth
        return vlmfix.MemVR().resolve(llava.config, None).layers

    before = llava.config.text_config.num_hidden_layers
    try:
        assert [of(depth) for depth in (32, 28, 36)] == [(7, 17), (6, 15), (8, 19)]
    finally:
        llava.config.text_config.num_hidden_layers = before
    with pytest.raises(ValueError, match="layers of this model go from 0 to 4"):
        vlmfix.MemVR(layers=(2, 6))(llava).__enter__()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"ratio": 1.5}, r"ratio is 1\.5; it must be a number from 0 to 1"),
        ({"threshold": -1}, "threshold is -1; it must be"),
        ({"layers": (3, 3)}, r"layers is \(3, 3\)"),
        ({"normed": 1}, "normed is 1; it must be true or false"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.MemVR(**parameters)
