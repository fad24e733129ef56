"""DyVTE: the vectors of its specification, the pruned model against a masked one, and trained gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.dyvte import DyVTE, ExitGate, exit_logits, read_gates, text_features
from vlmfix.models.directions import write_directions
from vlmfix.models.profiles import Profile

HIDDEN, LAST = families.HIDDEN, families.LAYERS - 1


def test_vector() -> None:
    states = torch.tensor([[[9.0, 9], [1, 2], [3, 0], [5, 1]]])
    features = text_features(states, torch.tensor([[False, True, True, True]]))
    assert features.tolist() == [[2, 1, 5, 1]]
    gate = ExitGate(
        torch.tensor([[1.0, 0, 0, 1], [0, 1, -1, 0], [0.5, 0.5, 0.5, 0.5]]),
        torch.tensor([[1.0, 0, -1], [0, 1, 1]]),
    )
    expected = torch.tensor([[-1.504034, 4.499858]])
    torch.testing.assert_close(exit_logits(features, gate), expected, atol=1e-5, rtol=0)


def test_the_last_token_alone_is_seen_twice() -> None:
    states = torch.tensor([[[1.0, 2], [3, 4]], [[1, 2], [5, 6]]])
    after = torch.tensor([[False, True], [True, True]])
    assert text_features(states, after).tolist() == [[3, 4, 3, 4], [1, 2, 5, 6]]


@pytest.mark.parametrize(
    ("family", "layer"), [("llava", 0), ("llava_next", 3), ("qwen2_5_vl", 2), ("qwen3_vl", 0)]
)
def test_equals_masking(family: str, layer: int, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    method = DyVTE(exit_layer=layer)
    with method(model, families.PROCESSOR), torch.no_grad():
        pruned = model(**inputs).logits[:, -1]
    expected = masked_logits(
        model, inputs, enter=lambda index, states, _: (image, states) if index == layer + 1 else None
    )
    torch.testing.assert_close(pruned, expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[:2, -1] - expected[:2]).abs().max() > 1e-3
    counts = image[:2].sum(dim=1).float()
    assert method.edit_stats().size == pytest.approx(float(counts.mean()) * (layer + 1) / families.LAYERS)


def gates(folder: Path, *, seed: int = 1, size: int = 6) -> str:
    """A file of random gates that let the image tokens of some prompts go early, of some late."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "first": torch.randn(LAST, size, 2 * HIDDEN, generator=generator),
        "second": torch.randn(LAST, 2, size, generator=generator),
    }
    metadata = {"method": "dyvte", "num_hidden_layers": str(families.LAYERS), "hidden_size": str(HIDDEN)}
    save_file(tensors, folder / "gates.safetensors", metadata=metadata)
    return str(folder / "gates.safetensors")


def test_each_prompt_has_its_own_exit(tmp_path: Path, llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (2, 1, 0, 1, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    path = gates(tmp_path)
    weights = [[each.double() for each in gate] for gate in read_gates(path, llava.config)]
    left = image.clone()
    exits: dict[int, int] = {}

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        for row, mask in enumerate(image) if layer else ():
            if not left[row].any():
                continue
            start = int(mask.nonzero().max()) + 1
            text = states[row, start:].double()
            first, second = weights[layer - 1]
            hidden = first @ torch.cat([text[:-1].mean(dim=0), text[-1]])
            keep, leave = second @ (hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
            if leave > keep:
                left[row] = False
                exits[row] = layer - 1
        return image & ~left, states

    with DyVTE(gate_weights=path)(llava), torch.no_grad():
        pruned = llava(**inputs).logits[:, -1]
    torch.testing.assert_close(pruned, masked_logits(llava, inputs, enter=enter), atol=2e-5, rtol=1e-4)
    assert len(set(exits.values())) > 1
    with DyVTE(gate_weights=path)(llava):
        batch = llava.generate(**inputs, max_new_tokens=3, do_sample=False)[:, -3:]
        singles = [
            llava.generate(**single, max_new_tokens=3, do_sample=False)[:, -3:]
            for single in families.split("llava", llava, inputs)
        ]
    assert torch.equal(batch, torch.cat(singles))


def test_gates_that_never_open_are_idle_and_say_so(tmp_path: Path, llava: PreTrainedModel) -> None:
    zero = {"first": torch.zeros(LAST, 1, 2 * HIDDEN), "second": torch.zeros(LAST, 2, 1)}
    write_directions(tmp_path / "zero", "dyvte", llava.config, zero)
    inputs = families.prompt("llava", llava, (1,))
    with torch.no_grad():
        stock = llava(**inputs).logits
        with (
            pytest.warns(vlmfix.InactiveMethodWarning, match="no gate let the image tokens go"),
            DyVTE(gate_weights=str(tmp_path / "zero"))(llava),
        ):
            assert torch.equal(llava(**inputs).logits, stock)


def test_the_layer_of_the_profile(llava: PreTrainedModel) -> None:
    profile = Profile("x", {}, {"dyvte_exit_layer": {"value": 2, "source": "a test"}}, Path())
    assert DyVTE().resolve(llava.config, profile).exit_layer == 2
    assert DyVTE(exit_layer=0).resolve(llava.config, profile).exit_layer == 0
    with pytest.raises(ValueError, match="no exit_layer is known for this checkpoint; find it with 'vlmfix"):
        DyVTE().resolve(llava.config, None)
    with pytest.raises(ValueError, match=r"exit_layer is 4; .* after layers 0 to 3, and -1 keeps them"):
        DyVTE(exit_layer=LAST).resolve(llava.config, profile)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"exit_layer": -2}, "exit_layer is -2; it must be a whole number from -1 on"),
        ({"exit_layer": True}, "exit_layer is True"),
        ({"gate_weights": 3}, "gate_weights is 3; it must be the name of a safetensors file"),
        ({"gate_weights": "x", "exit_layer": 1}, "there are gate_weights, which choose it; pass one"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DyVTE(**parameters)


def test_files_that_are_no_gates_of_the_model(tmp_path: Path, llava: PreTrainedModel) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DyVTE(gate_weights=str(path)).resolve(llava.config, None)

    refused(tmp_path / "none", "there is no file .* make it by 'python -m training.train_gates")
    write_directions(tmp_path / "vti", "vti", llava.config, {"text": torch.zeros(5, HIDDEN)})
    refused(tmp_path / "vti", "is for method 'vti', and not 'dyvte'")
    few = {"first": torch.zeros(LAST - 1, 2, 2 * HIDDEN), "second": torch.zeros(LAST - 1, 2, 2)}
    write_directions(tmp_path / "few", "dyvte", llava.config, few)
    refused(tmp_path / "few", r"gates of this model are first \(4, size, 64\) and second \(4, 2, size\)")


def test_size_of_published_gates() -> None:
    gate = ExitGate(torch.empty(2048, 2 * 4096, device="meta"), torch.empty(2, 2048, device="meta"))
    assert sum(each.numel() for each in gate) == 16_781_312
