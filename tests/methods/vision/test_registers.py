"""Test-time registers: vectors of the specification, a slow reference, and a tower with a planted neuron."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import ACTING
from vlmfix.calibration import register_neurons
from vlmfix.calibration.calibrate import calibrate, write_profile
from vlmfix.calibration.register_neurons import outlier_limit
from vlmfix.inference.conversation import Conversation
from vlmfix.methods.vision.maps import encoder_maps
from vlmfix.methods.vision.registers import Registers, move_to_register

ACTIVATIONS = [[0.1, 5, -0.2], [0.3, -0.4, 0.2], [2, 0.6, 0.1], [0.2, 0.1, -7], [0, 0, 0]]
PLANTED = (2, 7)


@pytest.mark.parametrize(
    ("rule", "class_token", "expected"),
    [
        ("paper", True, [[0.1, 0, 0], [0.3, 0, 0], [2, 0, 0], [0.2, 0, 0], [0, 5, 0.2]]),
        ("signed_extreme", True, [[0.1, 5, -0.2], [0.3, 0, 0], [2, 0, 0], [0.2, 0, 0], [0, -7, -7]]),
        ("signed_extreme", False, [[0.1, 0, 0], [0.3, 0, 0], [2, 0, 0], [0.2, 0, 0], [0, -7, -7]]),
    ],
)
def test_vectors(rule: str, class_token: bool, expected: list[list[float]]) -> None:
    """A second picture keeps its own values, and negative maxima stay as they are."""
    both = torch.stack([torch.tensor(ACTIVATIONS), -torch.tensor(ACTIVATIONS).abs()])
    moved = move_to_register(both, torch.tensor([1, 2]), rule=rule, class_token=class_token)
    torch.testing.assert_close(moved[0], torch.tensor(expected))
    own = [-0.1, -0.1] if rule == "paper" else [-7.0, -7.0]
    torch.testing.assert_close(moved[1, -1], torch.tensor([0.0, *own]))
    assert torch.equal(both[0], torch.tensor(ACTIVATIONS))


def test_outlier_limit() -> None:
    """One outlier hides itself among so few; where norms are alike, twice the median is the limit."""
    norms = torch.tensor([10.0, 11, 9, 10, 10, 12, 9, 60])
    assert outlier_limit(norms) == pytest.approx(69.339779, abs=1e-5)
    assert outlier_limit(norms[:-1]) == 20


def slow_features(model: PreTrainedModel, pixels: Tensor, neurons: set[tuple[int, int]]) -> Tensor:
    """Image tokens of a stock model with a register, layer by layer and neuron by neuron, `(tokens, hidden)`
    of one picture."""
    tower: Any = model.model.vision_tower
    states = tower.embeddings(pixels[None])
    has_class = hasattr(tower.embeddings, "class_embedding")
    states = torch.cat([states, torch.zeros(1, 1, states.shape[2])], dim=1)
    if has_class:
        states = tower.pre_layrnorm(states)
    layers = tower.encoder.layers
    for number in range(len(layers) + 1 + model.config.vision_feature_layer):
        layer = layers[number]
        attended = layer.self_attn(layer.layer_norm1(states), attention_mask=None)
        states = states + attended[0]
        units = layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(states)))
        for own, unit in neurons:
            if own == number:
                best = max(float(each) for each in units[0, :-1, unit])
                for token in range(units.shape[1]):
                    units[0, token, unit] = best if token == units.shape[1] - 1 else 0
        states = states + layer.mlp.fc2(units)
    features: Tensor = model.model.multi_modal_projector(states[:, int(has_class) : -1])
    return features[0]


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_features_against_a_slow_reference(family: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    neurons = {(0, 3), (0, 11), (0, 30)} | ({(1, 4)} if family == "llava_onevision" else set())
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda _, __, out: seen.append(out))
    arguments: dict[str, Any] = {"pixel_values": pixels}
    if family == "llava_onevision":
        arguments = {"pixel_values": pixels[:, None], "image_sizes": torch.tensor([[56, 56]] * 2)}
        arguments["batch_num_images"] = torch.tensor([2])
    try:
        with torch.no_grad(), Registers(neurons=tuple(neurons))(model):
            model.model.get_image_features(**arguments)
        with torch.no_grad():
            model.model.get_image_features(**arguments)
    finally:
        hook.remove()
    with torch.no_grad():
        expected = torch.stack([slow_features(model, each, neurons) for each in pixels])
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)
    assert seen[1].shape == expected.shape
    assert (seen[1] - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "no register neurons are known for this checkpoint; find them with 'vlmfix calibrate"),
        ({"neurons": ((2, 0),)}, r"neurons has \(2, 0\); the layers of this vision encoder go from 0 to 1"),
        ({"neurons": ((0, 32),)}, r"neurons has \(0, 32\); the neurons of this layer go from 0 to 31"),
        ({"neurons": ((1, 0),)}, "neurons has none up to layer 0, the last that the projector reads"),
        ({"neurons": (1, 2)}, r"neurons is \(1, 2\); it must hold pairs of layer and neuron"),
        ({"neurons": 4}, "neurons is 4; it must hold pairs"),
        ({"register_rule": "mean"}, "register_rule is 'mean'; it must be one of 'paper', 'signed_extreme'"),
    ],
)
def test_values_that_do_not_fit_are_named(
    parameters: dict[str, Any], message: str, llava: PreTrainedModel
) -> None:
    before = families.fingerprint(llava)
    with pytest.raises(ValueError, match=message):
        Registers(**parameters)(llava).__enter__()
    assert families.fingerprint(llava) == before


def test_neurons_that_nobody_reads_are_left_out(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    found = []
    for neurons, warns in (((0, 1),), False), (((0, 1), (1, 1)), True):
        with warnings.catch_warnings(record=True) as caught, Registers(neurons=neurons)(llava):
            found.append(llava(**inputs).logits)
        assert any("leaves out 1 neurons after layer 0" in str(each.message) for each in caught) == warns
    assert torch.equal(*found)


def test_one_change_of_the_encoder_at_a_time(llava: PreTrainedModel) -> None:
    with (
        Registers(**ACTING["registers"])(llava),
        pytest.raises(vlmfix.UnsupportedError, match="one at a time"),
    ):
        vlmfix.VisionZip(dominant_tokens=2)(llava).__enter__()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((112, 112), 0)
        for _ in range(8)
    ]


@pytest.fixture(scope="module")
def planted(loaded: tuple[Any, Any], pictures: list[Image.Image]) -> tuple[PreTrainedModel, Any]:
    """The embedded model with a neuron that fires at a fiftieth of the patches and makes them outliers."""
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    mlp = model.model.vision_tower.encoder.layers[PLANTED[0]].mlp
    inputs: list[Tensor] = []
    hook = mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0][:, 1:].flatten(0, 1)))
    prompts = [Conversation.of(picture, "?") for picture in pictures]
    vlmfix.generate(model, processor, messages=prompts, max_new_tokens=1)
    hook.remove()
    direction = nn.functional.normalize(torch.randn(160, generator=torch.Generator().manual_seed(0)), dim=0)
    along = torch.cat(inputs).float() @ direction
    limit = float(along.quantile(0.98))
    with torch.no_grad():
        mlp.fc1.weight[PLANTED[1]] = 20 * direction
        mlp.fc1.bias[PLANTED[1]] = 10 - 20 * limit
        mlp.fc2.weight[:, PLANTED[1]] = 10 * direction.roll(1)
    return model, processor


def test_a_planted_neuron_is_found_and_its_outliers_go(
    planted: tuple[PreTrainedModel, Any], pictures: list[Image.Image], tmp_path: Any
) -> None:
    model, processor = planted
    found = calibrate("registers", model, processor, pictures)
    assert found.values == {"register_neurons": [list(PLANTED)]}
    assert found.findings["top layer"] == PLANTED[0]
    write_profile(model, found, "planted")
    limit = found.findings["norm threshold"]
    both = [
        encoder_maps(model, processor, Conversation.of(picture, "Describe the image."), Registers())
        for picture in pictures
    ]
    assert max(maps.norms[0].before.max() for maps in both) > limit
    assert max(maps.norms[0].after.max() for maps in both) < limit
    maps = both[0]
    assert maps.norms[0].before.shape == maps.attention[0].after.shape == (112, 112)
    assert not np.allclose(maps.attention[0].before, maps.attention[0].after)
    written = maps.save(tmp_path, "one")
    assert [path.name for path in written] == ["one-attention.png", "one-norms.png"]
    assert Image.open(written[0]).size == (224, 112)


def test_no_neurons_are_made_up(
    loaded: tuple[Any, Any], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded encoder has no outliers; and where patches are called so, no few neurons make them."""
    with pytest.raises(ValueError, match=r"no register neurons: of 512 patches of 8 pictures 0 are outliers"):
        calibrate("registers", *loaded, pictures)
    monkeypatch.setattr(register_neurons, "_OUTLIER_RATIO", 0.0)
    monkeypatch.setattr(register_neurons, "_OUTLIER_STD", 1.0)
    monkeypatch.setattr(register_neurons, "_COUNTS", (1, 2))
    with pytest.raises(ValueError, match=r"without the 2 neurons that fire most at outliers, .* are left"):
        calibrate("registers", *loaded, pictures)


def test_other_encoders_have_no_registers() -> None:
    model, processor = vlmfix.load("tiny-qwen2.5-vl")
    picture = Image.new("RGB", (56, 56))
    with pytest.raises(vlmfix.UnsupportedError, match="is not a CLIP or SigLIP encoder"):
        calibrate("registers", model, processor, [picture])
    with pytest.raises(vlmfix.UnsupportedError, match="is not a CLIP or SigLIP encoder"):
        Registers()(model).__enter__()
