"""Random directions in the place of those of a steering method: of the same length, and the same edit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import directions, values
from tests.support.stream_reference import Edit, answers, each_from
from vlmfix import VTI, BaselineRandomDirections, Nullu, make_method
from vlmfix.methods.baselines.random_directions import for_all, random_like
from vlmfix.methods.pruning.random_tokens import item_seed
from vlmfix.models.directions import read_directions, write_directions
from vlmfix.models.profiles import find_profile
from vlmfix.models.structure import text_decoder


def test_lengths_stay_and_directions_are_drawn() -> None:
    vectors = torch.tensor([[[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]], [[0.0, 2.0, 0.0], [1.0, 1.0, 1.0]]])
    lengths = vectors.norm(dim=-1)
    for draw in (random_like, for_all):
        drawn = draw(vectors, seed=1)
        torch.testing.assert_close(drawn.norm(dim=-1), lengths)
        assert torch.equal(draw(vectors, seed=1), drawn)
        assert not torch.equal(draw(vectors, seed=2), drawn)
    units = random_like(vectors, seed=1)[[0, 1, 1], [0, 0, 1]] / lengths[[0, 1, 1], [0, 0, 1], None]
    assert (units @ units.T - torch.eye(3)).abs().max() > 0.01
    same = for_all(vectors, seed=1)
    torch.testing.assert_close(same[0, 0] / 5, same[1, 0] / 2)
    many = random_like(torch.ones(500, 8), seed=0)
    assert many.mean(dim=0).abs().max() < 0.2  # nowhere in particular


@pytest.mark.parametrize("of", ["vti", "nullu"])
def test_files_are_exchanged(of: str, models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    model = models["llava"]
    inputs = families.prompt("llava", model, (2, 1))
    own = directions("nullu", "subspaces", 4) if of == "nullu" else str(tmp_path / "own")
    if of == "vti":
        parts = {"text": torch.ones(5, 32), "image": torch.ones(2, 17, 32)}
        write_directions(tmp_path / "own", "vti", model.config, parts)
    settings = {"directions": own, **({"layers": (1, 4)} if of == "nullu" else {"alpha_text": 4.0})}
    control = BaselineRandomDirections(of=of, settings=settings, seed=3)
    resolved = control.resolve(model.config, None)
    if of == "vti":
        assert isinstance(resolved, VTI)
        parts = {name: resolved.vectors(name, model.config) for name in ("text", "image")}
        assert parts["text"].unique(dim=0).shape == (5, 32)
    else:
        assert isinstance(resolved, Nullu)
        parts = {"subspaces": resolved.subspaces(model.config)}
        torch.testing.assert_close(
            parts["subspaces"] @ parts["subspaces"].mT, torch.eye(4).expand(5, -1, -1), atol=1e-5, rtol=0
        )
        before = read_directions(own, "nullu", model.config)["subspaces"]
        assert (before @ parts["subspaces"].mT).abs().max() < 0.9
    write_directions(tmp_path / "drawn", of, model.config, parts)
    with control(model):
        found = values(model, inputs, max_new_tokens=3)
    with make_method(of, **{**settings, "directions": str(tmp_path / "drawn")})(model):
        torch.testing.assert_close(values(model, inputs, max_new_tokens=3), found, atol=1e-5, rtol=1e-5)
    with make_method(of, **settings)(model):
        assert not torch.allclose(values(model, inputs, max_new_tokens=3), found, atol=1e-2)


def test_files_of_a_profile_are_not_named() -> None:
    """Where they lie says nothing of what was drawn."""
    model, _ = vlmfix.load()
    resolved = BaselineRandomDirections(of="nullu").resolve(model.config, find_profile(model))
    assert resolved.parameters["settings"] == {"rank": 4, "layers": (4, 8), "directions": None}
    assert Path(resolved.directions).is_file()


def towards(direction: Tensor) -> Edit:
    def edit(state: Tensor) -> Tensor:
        cosine = float(state @ -direction / state.norm())
        turned = state / state.norm() + 0.4 * (1 + max(0, cosine)) * direction
        return turned / turned.norm() * state.norm()

    return edit


SEED = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "vista": {"strength": 0.4},
    "cei": {"alpha": 0.3, "layer": 2},
    "rudder": {"alpha_max": 6.0, "layer": 2, "trust_gate": False},
}


@pytest.mark.parametrize("of", SETTINGS)
def test_model_against_the_edit_by_hand(of: str, models: dict[str, PreTrainedModel]) -> None:
    model = models["llava"]
    inputs = families.prompt("llava", model, (2, 1))
    layers = text_decoder(model).layers

    def drawn(*place: int) -> Tensor:
        return for_all(torch.eye(1, families.HIDDEN), seed=item_seed(SEED, list(place)) if place else SEED)[0]

    def edits_of(single: dict[str, Tensor]) -> Mapping[nn.Module, Edit]:
        last = single["input_ids"].shape[1] - 1
        if of == "vista":
            return {layer.mlp: each_from(0, towards(drawn(index))) for index, layer in enumerate(layers)}
        if of == "rudder":
            return {layers[2].self_attn: each_from(last, lambda state: state + 6.0 * drawn())}
        length = model(**single, output_hidden_states=True).hidden_states[-1][0, -1].norm()
        return {layers[2]: each_from(last, lambda state: 0.7 * state + 0.3 * length * drawn())}

    control = BaselineRandomDirections(of=of, settings=SETTINGS[of], seed=SEED)
    with control(model, families.PROCESSOR):
        found = values(model, inputs, max_new_tokens=3)
    torch.testing.assert_close(found, answers(model, "llava", inputs, edits_of), atol=1e-4, rtol=1e-4)
    assert control.edit_stats().size
    with make_method(of, **SETTINGS[of])(model, families.PROCESSOR):
        assert not torch.allclose(values(model, inputs, max_new_tokens=3), found, atol=1e-2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match="of is 'fade'; it must be one of 'vista', 'vti', 'nullu', 'cei', 'rudder'"
    ):
        BaselineRandomDirections(of="fade")
    with pytest.raises(ValueError, match="seed is -1"):
        BaselineRandomDirections(seed=-1)
    with pytest.raises(ValueError, match="strength is -1; it must be a number from 0 to 10"):
        BaselineRandomDirections(settings={"strength": -1})
