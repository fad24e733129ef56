"""Head Pursuit: which heads are scaled, and by how much."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vlmfix
from tests.support import families


def test_the_vector_of_the_spec() -> None:
    model = families.build("llava")
    projection = model.get_decoder().layers[1].self_attn.o_proj
    seen: list[torch.Tensor] = []
    inputs = families.prompt("llava", model, [1])
    with torch.no_grad():
        before = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(**inputs)
        before.remove()
        with vlmfix.HeadPursuit(head_scale=-1, heads=((1, 1),))(model):
            after = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            model(**inputs)
            after.remove()
    size = model.get_decoder().layers[1].self_attn.head_dim
    signs = torch.ones(seen[0].shape[-1])
    signs[size : 2 * size] = -1
    torch.testing.assert_close(seen[1], seen[0] * signs)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": ((9, 0),)}, r"heads has \(9, 0\); the layers of this model go from 0 to"),
        ({"heads": ((0, 99),)}, r"heads has \(0, 99\); .* its heads from 0 to"),
        ({}, "no heads of a concept are known for this checkpoint; find them with 'vlmfix calibrate"),
    ],
)
def test_what_a_model_does_not_have(settings: dict[str, Any], said: str) -> None:
    model = families.build("llava")
    with pytest.raises(ValueError, match=said), vlmfix.HeadPursuit(**settings)(model):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "concept is None; the profile of this checkpoint has colours, objects"),
        ({"concept": "sizes"}, "concept is 'sizes'; the profile of this checkpoint has colours, objects"),
        (
            {"concept": "colours", "num_heads": 9},
            "num_heads is 9, and the ranking of the profile has 8; it must",
        ),
    ],
)
def test_what_the_profile_does_not_have(loaded: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said), vlmfix.HeadPursuit(**settings)(loaded[0]):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"head_scale": 11}, r"head_scale is 11; it must be .*-10"),
        ({"num_heads": 0}, "num_heads is 0; it must be a whole number from 1 on"),
        ({"concept": ""}, "concept is ''; it must be the name of a ranking of the profile"),
        ({"heads": ((1, 1),), "concept": "a"}, "concept is 'a' and heads says which heads; pass one of them"),
    ],
)
def test_values_that_are_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        vlmfix.HeadPursuit(**settings)
