"""ILVAD: the vectors of its specification, and a model in slow loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices
from tests.support.methods import values
from vlmfix.methods.attention.evidence import (
    _clamped,
    evidence_map,
    evidence_of_rows,
    largest,
    reweigh,
    text_factors,
)

MEANS = 0.2 * torch.tensor(
    [
        [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.5, 0.3, 0.05, 0.05, 0.05, 0.05],
        [0.45, 0.05, 0.35, 0.05, 0.05, 0.05],
        [0.4, 0.3, 0.06, 0.08, 0.08, 0.08],
    ]
)
WEIGHTS = torch.tensor(
    [
        [0.40, 0.10, 0.20, 0.05, 0.10, 0.05, 0.10],
        [0.30, 0.30, 0.05, 0.05, 0.10, 0.10, 0.10],
        [0.55, 0.05, 0.06, 0.10, 0.10, 0.08, 0.06],
        [0.20, 0.10, 0.10, 0.10, 0.05, 0.30, 0.15],
    ]
)[None, :, None]


def test_vector_of_the_map() -> None:
    image = torch.ones(1, 6, dtype=torch.bool)
    found = evidence_map(MEANS[None], image, tau=1.5, filtered=True)
    assert found.tolist() == [[0, 1, 0, 0, 0, 0]]
    assert float((5 * found).exp()[0, 1]) == pytest.approx(148.413159, rel=1e-6)
    assert evidence_map(MEANS[None], image, tau=1.5, filtered=False).tolist() == [[0, 1, 0.5, 0, 0, 0]]
    padded = torch.cat([torch.full((1, 4, 2), 9.0), MEANS[None]], dim=2)
    mask = torch.tensor([[False] * 2 + [True] * 6])
    assert evidence_map(padded, mask, tau=1.5, filtered=True).tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]
    assert not evidence_map(MEANS[None], image, tau=50, filtered=True).any()


def test_vector_of_a_row() -> None:
    gain = 2 * torch.tensor([0, 0, 1, 0.5, 0, 0, 0])[None, None, None]
    image = torch.tensor([False, True, True, True, False, False, False])[None, None, None]
    text = torch.tensor([False] * 4 + [True] * 3)[None, None, None]
    chosen, looks = evidence_of_rows(WEIGHTS, gain, image, heads=2)
    assert chosen[0, :, 0].tolist() == [True, False, True, False]
    assert float(looks) == pytest.approx(2 * 0.1675, abs=1e-6)
    assert largest((WEIGHTS * text).sum(-1), 2)[0, :, 0].tolist() == [False, True, False, True]
    known = torch.tensor([[0, 0, 0, 0, 0.02, 0.10, 0.06]])
    factors = text_factors(known, text[:, 0, 0], beta=0.3)
    torch.testing.assert_close(factors, torch.tensor([[1, 1, 1, 1, 0.3, 1.3, 0.8]]))
    rows = torch.ones(1, 1, 1, dtype=torch.bool)
    edited = reweigh(WEIGHTS, gain, chosen, factors[:, None, None], text, rows, heads=2)
    expected = torch.tensor(
        [
            [0.169224, 0.042306, 0.625204, 0.057500, 0.042306, 0.021153, 0.042306],
            [0.319149, 0.319149, 0.053191, 0.053191, 0.031915, 0.138298, 0.085106],
            [0.353659, 0.032151, 0.285077, 0.174790, 0.064302, 0.051441, 0.038581],
            [0.195122, 0.097561, 0.097561, 0.097561, 0.014634, 0.380488, 0.117073],
        ]
    )
    torch.testing.assert_close(edited[0, :, 0], expected, atol=1e-6, rtol=0)
    assert torch.equal(reweigh(WEIGHTS, gain, chosen, None, text, ~rows, heads=2), WEIGHTS)


def test_vector_of_the_clamp() -> None:
    counts = torch.tensor([[0.0] * 11 + [12, 1]])
    clamped = _clamped(counts, torch.ones_like(counts).bool())
    assert float(clamped[0, 11]) == pytest.approx(10.949874, abs=1e-5)
    assert float(clamped[0, 12] / clamped[0, 11]) == pytest.approx(0.091325, abs=1e-6)


def test_text_that_is_alike_keeps_its_weights() -> None:
    text = torch.tensor([[True, True, False], [True, False, False]])
    found = text_factors(torch.tensor([[0.2, 0.2, 5.0], [0.3, 0.1, 0.2]]), text, beta=0.3)
    assert torch.equal(found, torch.ones(2, 3))


ALPHA, BETA, TAU, PROBE = 3.0, 0.3, 1.05, 4
EDITED = (1, 4)


class Reference:
    """A prompt and its answer in slow loops, every pass over all of it.

    Args:
        single: a prompt with an image.
        ends: the token that ends an answer.
    """

    def __init__(self, model: PreTrainedModel, single: dict[str, Tensor], ends: int) -> None:
        ids = single["input_ids"][0].tolist()
        self.model, self.single, self.length = model, single, len(ids)
        self.image = [place for place, token in enumerate(ids) if token == families.IMAGE_TOKEN]
        self.plain: dict[tuple[int, int], Tensor] = {}
        self.factors: dict[int, dict[int, float]] = {}
        self.evidence = dict.fromkeys(self.image, 0.0)
        self._probe(ends)
        self.looks: dict[int, float] = {}
        self._read([])
        for place in range(self.image[-1] + 1, self.length):
            self._note(place)

    def _read(self, new: list[int]) -> Tensor:
        """Logits after the answer so far; the weights of all rows without an edit of their own are kept."""

        def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
            weights = self.plain[layer, position] = scores.softmax(dim=-1)
            if position not in self.factors or layer not in range(*EDITED):
                return None
            return self._edited(weights, self.factors[position])

        with full_matrices(self.model, edit), torch.no_grad():
            return self.model(**families.continued(self.single, new), use_cache=False).logits[0, -1].float()

    def _probe(self, ends: int) -> None:
        new = [int(self._read([]).argmax())]
        while len(new) < PROBE and ends not in new:
            new.append(int(self._read(new).argmax()))
        self._read(new)
        rows = [self.length + number for number, token in enumerate(new[: PROBE - 1]) if token != ends]
        means = []
        for layer in range(families.LAYERS):
            kept = []
            for row in rows:
                seen = self.plain[layer, row][:, self.image]
                kept.append(seen[seen.sum(dim=-1).topk(2).indices].mean(dim=0))
            means.append(torch.stack(kept).mean(dim=0))
        counts = []
        overall = torch.stack(means).mean(dim=0)
        for number in range(len(self.image)):
            strong = [bool(mean[number] > TAU * mean.mean()) for mean in means]
            count = sum(now and not before for before, now in itertools.pairwise(strong))
            counts.append(count if overall[number] > overall.mean() else 0)
        found = torch.tensor(counts).double()
        found = found.clamp(found.mean() - 3 * found.std(), found.mean() + 3 * found.std())
        found = (found - found.min()) / (found.max() - found.min())
        self.evidence = dict(zip(self.image, found.tolist(), strict=True))

    def _heads(self, weights: Tensor) -> list[int]:
        """The two that look most at evidence."""
        shares = []
        for head in weights:
            on_evidence = sum(ALPHA * share * float(head[place]) for place, share in self.evidence.items())
            shares.append(on_evidence / sum(float(head[place]) for place in self.image))
        return sorted(range(4), key=lambda head: -shares[head])[:2]

    def _note(self, place: int) -> None:
        """How much a token looks at evidence in the pass that was read last."""
        self.looks[place] = 0.0
        for layer in range(families.LAYERS):
            weights = self.plain[layer, place]
            for head in self._heads(weights):
                for key, share in self.evidence.items():
                    self.looks[place] += ALPHA * share * float(weights[head, key]) / 2

    def _edited(self, weights: Tensor, factors: dict[int, float]) -> Tensor:
        edited, text = weights.clone(), list(factors)
        of_image, mass = self._heads(weights), weights[:, text].sum(dim=-1)
        of_text = mass.topk(2).indices.tolist()
        for head in of_image:
            for key, share in self.evidence.items():
                edited[head, key] *= math.exp(ALPHA * share)
        for head in of_text:
            for key, factor in factors.items():
                edited[head, key] *= factor
        return edited / edited.sum(dim=-1, keepdim=True)

    def step(self, new: list[int]) -> Tensor:
        """Logits after the answer so far, of which all but the last token have been read."""
        newest = self.length - 1 + len(new)
        known = self.looks | ({newest: self.looks[newest - 1]} if new else {})
        found = torch.tensor(list(known.values()))
        clamped = found.clamp(found.mean() - 3 * found.std(), found.mean() + 3 * found.std())
        scaled = (clamped - found.min()) / (found.max() - found.min()) + BETA
        self.factors[newest] = dict(zip(known, scaled.tolist(), strict=True))
        logits = self._read(new)
        if new:
            self._note(newest)
        return logits


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_model_against_slow_loops(family: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    method = vlmfix.ILVAD(alpha=ALPHA, beta=BETA, tau=TAU, probe_tokens=PROBE, layers=EDITED)
    with method(model):
        found = values(model, inputs, max_new_tokens=4)
    stock = values(model, inputs, max_new_tokens=4)
    torch.testing.assert_close(found[:, 1], stock[:, 1], atol=1e-5, rtol=1e-4)
    assert (found - stock)[:, [0, 2]].abs().amax(dim=(0, 2)).min() > 1e-3
    singles = families.split(family, model, inputs)
    for row in (0, 2):
        reference, new = Reference(model, singles[row], ends=2), list[int]()
        for logits in found[:, row]:
            torch.testing.assert_close(logits, reference.step(new), atol=5e-5, rtol=1e-4)
            new.append(int(logits.argmax()))
    stats = method.edit_stats()
    assert stats.layers_edited == [1, 2, 3]
    assert stats.size is not None
    assert stats.size != stats.details["before"]


def test_an_answer_that_ends_ahead_gives_the_rows_that_there_are(
    llava: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends at once has none, and is left as it is; the other of the batch is edited as alone."""
    inputs = families.prompt("llava", llava, (1, 2), seed=3)
    stock = values(llava, inputs, max_new_tokens=1)
    first, other = stock[0].argmax(dim=-1).tolist()
    assert first != other
    monkeypatch.setattr(llava.generation_config, "eos_token_id", first)
    with vlmfix.ILVAD(tau=TAU, probe_tokens=PROBE)(llava):
        found = values(llava, inputs, max_new_tokens=1)
        alone = values(llava, families.split("llava", llava, inputs)[1], max_new_tokens=1)
    torch.testing.assert_close(found[:, :1], stock[:, :1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, 1:], alone, atol=1e-5, rtol=1e-4)
    assert (found - stock)[:, 1].abs().max() > 1e-3


def test_text_alone_is_left(llava: PreTrainedModel) -> None:
    """Without the part on text, layers that are not edited are left to the kernel."""
    inputs = families.prompt("llava", llava, (1,))
    method = vlmfix.ILVAD(tau=TAU, probe_tokens=PROBE, beta=None)
    with method(llava):
        some = values(llava, inputs, max_new_tokens=3)
    assert method.edit_stats().layers_edited == [1, 2, 3]
    with vlmfix.ILVAD(tau=TAU, probe_tokens=PROBE)(llava):
        assert (values(llava, inputs, max_new_tokens=3) - some).abs().max() > 1e-4


def test_no_evidence_is_a_reason(llava: PreTrainedModel) -> None:
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match="no image token counts as evidence")
    with warns, vlmfix.ILVAD(tau=500)(llava):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": 21}, "alpha is 21; it must be a number from 0 to 20"),
        ({"beta": -1}, "beta is -1; it must be a number from 0 to 10"),
        ({"tau": -1}, "tau is -1"),
        ({"probe_tokens": 1}, "probe_tokens is 1; it must be a whole number from 2 on"),
        ({"head_share": 2}, "head_share is 2"),
        ({"evidence_filter": 1}, "evidence_filter is 1"),
        ({"layers": (3, 3)}, "layers is"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.ILVAD(**parameters)
