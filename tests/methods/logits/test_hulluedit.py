"""HulluEdit: the vectors of its specification, directions against a decomposition of the whole matrix, and
answers worked out without a cache."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import values
from vlmfix.methods.logits.hulluedit import HulluEdit, Split
from vlmfix.methods.logits.subspaces import ImageStates, text_span

IMAGE = [[2.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 1.0], [1.0, 1.0, 3.0, 0.0], [-1.0, 0.0, 1.0, 2.0]]
TEXT = [[1.0, 0.0, 0.0, 3.0], [0.0, 1.0, 1.0, -1.0], [2.0, 1.0, 0.0, 0.0]]
STATE = [1.0, 2.0, 0.5, -1.0]


def close(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("padding", [0, 2])
def test_vector(padding: int) -> None:
    """Padding changes nothing."""

    def padded(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
        states = torch.tensor([[[0.0] * 4] * padding + rows])
        return states, torch.tensor([[False] * padding + [True] * len(rows)])

    method = HulluEdit(rank_evidence=1, rank_prior=1)
    image, state = ImageStates.of(*padded(IMAGE)), torch.tensor([STATE])
    weights = image.weights(state, method.weight_temperature)
    close(weights[0, padding:], [0.274518, 0.296722, 0.298290, 0.130469])
    evidence, _ = image.span(state, rank=1, temperature=method.weight_temperature)
    direction = torch.tensor([-0.556941, 0.278693, -0.654972, 0.427970])
    close(evidence[0, :, 0] * (evidence[0, :, 0] @ direction).sign(), direction.tolist())
    prior = text_span(*padded(TEXT), evidence, rank=1)
    direction = torch.tensor([0.414169, -0.369006, 0.034025, 0.831349])
    close(prior[0, :, 0] * (prior[0, :, 0] @ direction).sign(), direction.tolist())
    split = Split.of(state, evidence, prior)
    close(torch.cat([split.vcr, split.pcr]), [0.091207, 0.207272])
    close(torch.cat(method.strengths(split.vcr, split.pcr)), [3.2, 0.057523])
    close(method.shrink(split)[0], [1.115353, 0.971648, 0.895237, -0.992254])


def test_directions_go_on_from_those_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many image states, without decomposing a whole matrix each time; from far off, it is decomposed."""
    generator = torch.Generator().manual_seed(0)
    scales = 0.9 ** torch.arange(64.0)
    states = torch.randn(2, 200, 64, generator=generator) * scales
    image = ImageStates.of(states, torch.ones(2, 200, dtype=torch.bool))
    first, later = (torch.randn(2, 64, generator=generator) * scales for _ in range(2))
    sizes: list[int] = []
    eigh = torch.linalg.eigh

    def noting(matrix: Tensor) -> Any:
        sizes.append(matrix.shape[-1])
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", noting)
    exact, start = image.span(first, rank=8, temperature=1.15)
    expected, _ = image.span(later, rank=8, temperature=1.15)
    near, _ = image.span(later, rank=8, temperature=1.15, start=start)
    assert sizes == [200, 200, 24]
    torch.testing.assert_close(near @ near.mT, expected @ expected.mT, atol=1e-5, rtol=0)
    assert not torch.allclose(near @ near.mT, exact @ exact.mT, atol=1e-3)
    flat = ImageStates.of(torch.randn(2, 200, 64, generator=generator), image.known)
    expected, _ = flat.span(later, rank=8, temperature=1.15)
    far, _ = flat.span(later, rank=8, temperature=1.15, start=start)
    assert sizes[3:] == [200, 24, 200]
    assert torch.equal(far, expected)


def test_strengths() -> None:
    method = HulluEdit(kappa=0.6, lambda_prior=0.3, vcr_floor=0.05, pcr_ceiling=0.95, pcr_threshold=0.02)
    method = HulluEdit(**{**method.parameters, "lambda_n_max": 4.0, "lambda_p_max": 4.0})
    rest, text = method.strengths(torch.tensor([0.30, 0.02, 1.0]), torch.tensor([0.10, 0.01, 0.0]))
    close(rest, [1.399995, 4.0, 0.0])
    close(text, [0.033333, 0.0, 0.0])


def projector(rows: Tensor, rank: int) -> Tensor:
    """On the first right singular vectors, in double precision; those of no spread left out."""
    _, sizes, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    kept = directions[: min(rank, int((sizes > 1e-5 * sizes.max()).sum()))]
    return kept.T @ kept


@pytest.mark.parametrize("seed", range(3))
def test_directions_against_the_whole_matrix(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, 9, 24, generator=generator) * torch.rand(24, generator=generator) * 3
    texts = torch.randn(2, 7, 24, generator=generator)
    known = torch.tensor([[True] * 9, [False] * 5 + [True] * 4])
    written = torch.tensor([[True] * 7, [False] * 6 + [True]])
    state = torch.randn(2, 24, generator=generator)
    states, texts = states * known[..., None], texts * written[..., None]
    image = ImageStates.of(states, known)
    evidence, _ = image.span(state, rank=4, temperature=1.15)
    prior = text_span(texts, written, evidence, rank=3)
    weights = image.weights(state, 1.15)
    for row in range(2):
        own, share = states[row, known[row]], weights[row, known[row]]
        centred = share.sqrt()[:, None] * (own - share @ own)
        expected = projector(centred, 4)
        torch.testing.assert_close((evidence @ evidence.mT)[row].double(), expected, atol=1e-5, rtol=0)
        said = texts[row, written[row]].double()
        said = said - said @ expected
        expected = projector(said - said.mean(dim=0), 3) if len(said) > 1 else torch.zeros(24, 24)
        torch.testing.assert_close((prior @ prior.mT)[row].double(), expected.double(), atol=1e-5, rtol=0)


@torch.no_grad()
def alone(model: PreTrainedModel, method: HulluEdit, single: dict[str, Tensor], new: list[int]) -> Tensor:
    """Logits of a prompt and its answer so far, one state at a time, without a cache."""
    entered: list[Tensor] = []
    layer = model.get_decoder().layers[method.anchor_layer]
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    output = model(**families.continued(single, new), use_cache=False, output_hidden_states=True)
    handle.remove()
    stream, state = entered[0][0], output.hidden_states[-1][0, -1]
    image = (single["input_ids"][0] == families.IMAGE_TOKEN).nonzero().flatten()
    if not len(image):
        return output.logits[0, -1]
    length = single["input_ids"].shape[1]
    said = torch.cat([stream[image[-1] + 1 : length - 1], stream[length:]]).double()
    if method.window is not None:
        said = said[-method.window :]
    seen, h = stream[image].double(), state.double()
    share = (torch.cosine_similarity(seen, h[None]) / method.weight_temperature).softmax(dim=0)
    on_image = projector(share.sqrt()[:, None] * (seen - share @ seen), method.rank_evidence)
    outside = said - said @ on_image
    on_text = torch.zeros_like(on_image)
    if len(said) > 1:
        on_text = projector(outside - outside.mean(dim=0), method.rank_prior)
    split = Split(h[None], (on_image @ h)[None], (on_text @ h)[None])
    return model.get_output_embeddings()(method.shrink(split).to(state))[0]


@pytest.mark.parametrize("parameters", [{}, {"window": 3, "anchor_layer": 2, "rank_evidence": 3}])
def test_against_brute_force(parameters: dict[str, Any], model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (2, 1, 0))
    method = HulluEdit(**{"anchor_layer": 4, **parameters})
    with method(model):
        found = values(model, inputs, max_new_tokens=5)
    for row, single in enumerate(families.split(family, model, inputs)):
        new: list[int] = []
        for logits in found[:, row]:
            expected = alone(model, method, single, new)
            torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
            new.append(int(logits.argmax()))
    assert method.edit_stats().kl_mean > 0


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}], ids=["cache", "no cache"])
def test_past_text_follows_beams(kwargs: dict[str, Any], model: PreTrainedModel, family: str) -> None:
    """The logits that each beam gets are those that its tokens get alone."""
    inputs = families.prompt(family, model, (1, 1))
    method = HulluEdit(anchor_layer=3)
    seen: list[Tensor] = []
    tokens: list[Tensor] = []

    class Watched(HulluEdit):
        def edit_logits(self, context: Any, logits: Tensor, branches: Any) -> Tensor:
            seen.append(super().edit_logits(context, logits, branches))
            return seen[-1]

    def note(ids: Tensor, scores: Tensor) -> Tensor:
        tokens.append(ids.clone())
        return scores

    with Watched(anchor_layer=3)(model):
        model.generate(
            **inputs, max_new_tokens=5, do_sample=False, num_beams=3, logits_processor=[note], **kwargs
        )
    singles = families.split(family, model, inputs)
    for ids, logits in zip(tokens, seen, strict=True):
        for row in range(6):
            new = ids[row, inputs["input_ids"].shape[1] :].tolist()
            expected = alone(model, method, singles[row // 3], new)
            torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=1e-4)
    assert any(not torch.equal(after[:, :-1], before) for before, after in itertools.pairwise(tokens))


def test_the_anchor_layer_is_scaled() -> None:
    config = AutoConfig.for_model("llava", **families.FAMILIES["llava"].config)
    for depth, layer in ((32, 26), (28, 23), (5, 4), (1, 0)):
        config.text_config.num_hidden_layers = depth
        assert HulluEdit().resolve(config, None).anchor_layer == layer
    with pytest.raises(ValueError, match="anchor_layer is 1; the layers of this model go from 0 to 0"):
        HulluEdit(anchor_layer=1).resolve(config, None)


def test_an_image_that_is_gone_in_the_anchor_layer_is_a_reason(llava: PreTrainedModel) -> None:
    class NoImage(vlmfix.RandomTokens):
        def choose(self, context: Any, layer: int, hidden_states: Tensor) -> Any:
            return vlmfix.PruneResult(~context.layout_at(layer).image_tokens) if layer == 1 else None

    inputs = families.prompt("llava", llava, (1,))
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match="no image token is left in the anchor layer")
    with NoImage(kept_tokens=1)(llava):
        stock = values(llava, inputs, max_new_tokens=3)
        with warns, HulluEdit()(llava):
            assert torch.equal(values(llava, inputs, max_new_tokens=3), stock)


def test_it_does_not_go_with_a_search_that_takes_tokens_back(llava: PreTrainedModel) -> None:
    with vlmfix.OPERA()(llava), pytest.raises(vlmfix.UnsupportedError, match="takes them back"):
        HulluEdit()(llava).__enter__()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"anchor_layer": -1}, "anchor_layer is -1; it must be a whole number from 0 on"),
        ({"rank_evidence": 0}, "rank_evidence is 0"),
        ({"rank_prior": -1}, "rank_prior is -1"),
        ({"kappa": -1}, "kappa is -1"),
        ({"weight_temperature": 0}, "weight_temperature is 0; it must be a number from 0.01 to 100"),
        ({"blend": 1.1}, "blend is 1.1; it must be a number from 0 to 1"),
        ({"window": 0}, "window is 0; it must be a whole number from 1 on"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HulluEdit(**parameters)
