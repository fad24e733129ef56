"""Refinement of text embeddings: the formula, the same in training and in `generate`, a short training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vlmfix
from training.decoder import answer_loss
from training.prompts import dialogues
from training.refine import RefinedEmbeddings, Refinement, hidden_states, mean_token, table, train
from training.sequences import Packer
from training.train import FAMILIES
from training.world import SEED, Rendered, _draw
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare

SCENES = list(range(6))
TURN = "Describe the image.", "The image shows a dog."


MODELS = ["tiny-llava", pytest.param("tiny-qwen2.5-vl", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest) -> Any:
    """A family with the weights of the embedded model."""
    found = FAMILIES[request.param]()
    found.model.load_state_dict(vlmfix.load(request.param)[0].state_dict())
    return found


def world_of(family: Any) -> Rendered:
    return Rendered(family.sizes[0], *_draw((family.sizes[0], family.cell, SCENES)))


def random_refinement(*, sees_image: bool = True) -> Refinement:
    torch.manual_seed(0)
    refinement = Refinement(192, sees_image=sees_image)
    torch.nn.init.normal_(refinement.mix.weight, std=0.05)
    torch.nn.init.normal_(refinement.mix.bias, std=0.5)
    return refinement


def test_formula() -> None:
    embeddings = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 9.0]]])
    image = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_token(embeddings, image).tolist() == [[2, 3], [0, 0]]
    refinement = Refinement(2, sees_image=True)
    text, shown = torch.tensor([[[1.0, -1.0]]]), torch.tensor([[2.0, 3.0]])
    assert torch.equal(refinement(text, shown), text)
    with torch.no_grad():
        refinement.mix.weight[:] = torch.tensor([[1.0, 0, 0, 1], [0, 1, 2, 0]])
        refinement.mix.bias[:] = torch.tensor([0.5, 0])
    assert refinement(text, shown).tolist() == [[[1 + 1 + 3 + 0.5, -1 - 1 + 4]]]
    refinement.sees_image = False
    assert refinement(text, shown).tolist() == [[[2.5, -2]]]


@pytest.mark.parametrize("sees_image", [True, False])
def test_generate_reads_what_was_trained(sees_image: bool, family: Any) -> None:
    """Logits of a dialogue in a packed sequence and in `generate`, also without a cache and in a batch."""
    refinement, world = random_refinement(sees_image=sees_image), world_of(family)
    model, processor = vlmfix.load(family.name)
    grid = world.labels.shape[1:3]
    packer = Packer(family, grid[0] * grid[1], 60)
    batch = packer(grid, [np.arange(grid[0] * grid[1])], [[[TURN], [("Is there a dog?", "Yes")]]])
    with torch.no_grad():
        image = family.project(family.features(torch.from_numpy(world.pixels[:1])))
        trained = family.model.lm_head(hidden_states(family, refinement, batch, image))
        trained = trained[(batch.targets >= 0) & (batch.segment == 1)]
    pictures = [render(sample_scene(SEED, index, split="train", size=world.size)) for index in (0, 1)]
    forced = batch.targets[(batch.targets >= 0) & (batch.segment == 1)].tolist()

    def decoded(count: int, **kwargs: Any) -> torch.Tensor:
        inputs = prepare([[picture] for picture in pictures[:count]], [TURN[0]] * count, processor)
        start = inputs["input_ids"].shape[1]
        with RefinedEmbeddings(refinement=refinement)(model):
            output = model.generate(
                **inputs,
                max_new_tokens=len(forced),
                prefix_allowed_tokens_fn=lambda _, ids: [forced[len(ids) - start]],
                output_logits=True,
                return_dict_in_generate=True,
                do_sample=False,
                **kwargs,
            )
        return torch.stack(output.logits)[:, 0]

    for found in (decoded(1), decoded(1, use_cache=False), decoded(2)):
        torch.testing.assert_close(found, trained, atol=1e-3, rtol=1e-3)


def test_untrained_it_is_the_stock_model_and_beams_follow(family: Any) -> None:
    model, processor = vlmfix.load(family.name)
    inputs = prepare([[render(sample_scene(3, 0))], []], ["Describe the image."] * 2, processor)
    kwargs: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": 2}
    stock = model.generate(**inputs, **kwargs)
    with RefinedEmbeddings(refinement=Refinement(192, sees_image=True))(model):
        assert torch.equal(model.generate(**inputs, **kwargs), stock)
    with RefinedEmbeddings(refinement=random_refinement())(model):
        other = model.generate(**inputs, **kwargs)
    assert not torch.equal(other[0], stock[0])


def test_a_short_training_lowers_the_loss(family: Any) -> None:
    refinement, lines, world = Refinement(192, sees_image=True), list[str](), world_of(family)
    grid = world.labels.shape[1:3]
    packer = Packer(family, grid[0] * grid[1], 60)
    rng = np.random.default_rng(0)
    talks = [dialogues(world.scene(index), rng, 4) for index in SCENES]
    batch = packer(grid, [np.arange(grid[0] * grid[1])] * len(SCENES), talks)

    def loss() -> float:
        with torch.no_grad():
            image = family.project(family.features(torch.from_numpy(world.pixels)))
            return float(answer_loss(family, batch, hidden_states(family, refinement, batch, image))[0])

    before = loss()
    train(family, refinement, [world], 4, lines.append, sequences=4)
    assert loss() < before
    assert [line[:11] for line in lines] == ["refine 4/4 "]
    assert not any(each.requires_grad for each in family.model.parameters())


def test_table() -> None:
    assert table({"before": {"CHAIRi": 0.5}, "refined": {"CHAIRi": 0.25}}) == (
        "| | before | refined |\n| --- | --- | --- |\n| CHAIRi | 0.500 | 0.250 |"
    )
