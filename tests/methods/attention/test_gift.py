"""GIFT: the formulas on the spec's vectors, the words of a question, the method against full matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import vlmfix
from tests.support import families
from vlmfix.inference import keywords
from vlmfix.inference.keywords import content_words
from vlmfix.methods.attention.gift import (
    enhance,
    gaze_shifts,
    saliency_map,
    top_heads,
)

ROWS = torch.tensor(
    [
        [0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.6, 0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 0.05],
        [0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.2],
        [0.5, 0.02, 0.02, 0.02, 0.04, 0.2, 0.1, 0.1],
    ]
)
ENHANCED = torch.tensor(
    [
        [0.156017, 0.052006, 0.384274, 0.052006, 0.052006, 0.125843, 0.125843, 0.052006],
        [0.6, 0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 0.05],
        [0.122033, 0.122033, 0.450853, 0.061016, 0.061016, 0.030508, 0.030508, 0.122033],
        [0.350647, 0.014026, 0.014026, 0.014026, 0.028052, 0.339396, 0.169698, 0.070129],
    ]
)
IMAGE = torch.tensor([[False, True, True, True, True, False, False, False]])
QUESTION = torch.tensor([[False, False, False, False, False, True, True, False]])
FACTORS = torch.tensor([[1, 1, math.e**2, 1, 1, 1, 1, 1]])

READING = torch.tensor(
    [
        [
            [0.10, 0.02, 0.02, 0.02],
            [0.10, 0.06, 0.02, 0.02],
            [0.10, 0.02, 0.10, 0.03],
            [0.10, 0.03, 0.04, 0.02],
        ],
        [
            [0.05, 0.05, 0.05, 0.05],
            [0.04, 0.05, 0.06, 0.05],
            [0.05, 0.05, 0.05, 0.05],
            [0.03, 0.09, 0.05, 0.05],
        ],
        [[0.30, 0, 0, 0], [0.30, 0.01, 0, 0], [0.30, 0, 0.01, 0], [0.30, 0, 0, 0.01]],
        [
            [0.02, 0.02, 0.02, 0.02],
            [0.02, 0.02, 0.02, 0.02],
            [0.02, 0.02, 0.12, 0.02],
            [0.02, 0.08, 0.02, 0.02],
        ],
    ]
)


def test_enhancement_of_a_row() -> None:
    edited = enhance(ROWS[None, :, None], FACTORS, IMAGE, QUESTION)[0, :, 0]
    torch.testing.assert_close(edited, ENHANCED, atol=1e-5, rtol=0)
    assert torch.equal(edited[1], ROWS[1])


def test_generated_keys_lose_in_proportion() -> None:
    with_more = torch.cat([ROWS * 0.9, torch.full((4, 2), 0.05)], dim=1)
    edited = enhance(with_more[None, :, None], FACTORS, IMAGE, QUESTION)[0, :, 0]
    torch.testing.assert_close(edited.sum(dim=-1), torch.ones(4))
    torch.testing.assert_close(edited[0, 8] / edited[0, 0], with_more[0, 8] / with_more[0, 0])


def test_no_boost_and_no_gain_change_nothing() -> None:
    edited = enhance(ROWS[None, :, None], torch.ones(1, 8), IMAGE, QUESTION)
    torch.testing.assert_close(edited[0, :, 0], ROWS)
    without_image = enhance(ROWS[None, :, None], FACTORS, torch.zeros_like(IMAGE), QUESTION, query_gain=3.0)
    assert torch.equal(without_image[0, :, 0], ROWS)


def test_image_mass_of_zero_leaves_the_question_its_gain() -> None:
    rows = ROWS.clone()
    rows[:, 1:5] = 0
    rows /= rows.sum(dim=1, keepdim=True)
    edited = enhance(rows[None, :, None], FACTORS, IMAGE, QUESTION)[0, :, 0]
    torch.testing.assert_close(edited, rows)


def naive_enhance(
    weights: Tensor, factors: Tensor, image: Tensor, question: Tensor, keep: float, gain: float
) -> Tensor:
    """One sample and row after the other, `weights` (batch, heads, rows, keys)."""
    result = weights.double().clone()
    for sample in range(weights.shape[0]):
        for row in range(weights.shape[2]):
            a = weights[sample, :, row].double()
            count = int(a.shape[0] * keep)
            looking = a[:, image[sample]].sum(1).argsort(descending=True)[:count].tolist()
            asking = a[:, question[sample]].sum(1).argsort(descending=True)[:count].tolist()
            before = sum(float(a[head, image[sample]].sum()) for head in looking)
            new = a.clone()
            for head in looking:
                new[head, image[sample]] *= factors[sample, image[sample]].double()
            after = sum(float(new[head, image[sample]].sum()) for head in looking)
            for head in asking:
                new[head, question[sample]] *= gain * after / before
            result[sample, :, row] = new / new.sum(dim=1, keepdim=True)
    return result


def test_enhancement_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    for keep in (0.3, 0.5, 1.0):
        weights = torch.rand(3, 5, 2, 12, generator=generator).softmax(dim=-1)
        kind = torch.randint(3, (3, 12), generator=generator)
        image, question = kind == 1, kind == 2
        factors = 1 + 10 * torch.rand(3, 12, generator=generator)
        edited = enhance(weights, factors, image, question, head_keep_fraction=keep, query_gain=1.3)
        expected = naive_enhance(weights, factors, image, question, keep, 1.3)
        torch.testing.assert_close(edited.double(), expected, atol=1e-6, rtol=1e-5)


def test_map_of_the_shifts() -> None:
    shifts = gaze_shifts(READING[:, 1:], READING[:, :-1])[None]
    informative = torch.tensor([[False, True, True]])
    scores = (shifts * informative[:, None, :, None]).sum(dim=(2, 3))
    torch.testing.assert_close(scores, torch.tensor([[0.10, 0.05, 0.02, 0.16]]))
    saliency = saliency_map(shifts, informative, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(saliency, torch.tensor([[0, 0.388889, 1, 0.055556]]), atol=1e-5, rtol=0)
    for boost, factors in (
        (5, [1, 6.989748, 148.413159, 1.320193]),
        (4, [1, 4.737718, 54.598150, 1.248849]),
    ):
        torch.testing.assert_close(torch.exp(boost * saliency), torch.tensor([factors]), atol=1e-4, rtol=1e-5)


def test_clipping() -> None:
    shifts = torch.full((1, 1, 1, 20), 0.01)
    shifts[..., 4], shifts[..., 7] = 1.0, 0.05
    saliency = saliency_map(
        shifts,
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, 20, dtype=torch.bool),
        head_keep_fraction=1.0,
    )
    assert float(saliency[0, 4]) == 1.0
    assert float(saliency[0, 7]) == pytest.approx(0.055964, abs=1e-6)


def test_a_constant_map_and_a_single_token_are_no_saliency() -> None:
    everything = torch.ones(1, 3, dtype=torch.bool)
    for image in (everything, torch.tensor([[False, True, False]])):
        saliency = saliency_map(torch.full((1, 2, 1, 3), 0.2), torch.ones(1, 1, dtype=torch.bool), image)
        assert torch.equal(saliency, torch.zeros(1, 3))


def test_as_many_heads_as_the_share_says() -> None:
    scores = torch.tensor([[3.0, 1, 2, 5, 4]])
    assert top_heads(scores, 0.5).tolist() == [[False, False, False, True, True]]
    assert not top_heads(scores, 0.1).any()


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in content_words(text)]


def test_words_that_are_left_without_function_words() -> None:
    assert words("Is there a red dog in the image?") == ["red", "dog", "image"]
    assert words("How many of THE 3 cats are it's?") == ["many", "3", "cats", "it's"]
    assert words("Is it?") == []


@dataclass
class Token:
    idx: int
    text: str
    pos_: str

    def __len__(self) -> int:
        return len(self.text)


def test_words_that_spacy_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the interface of a spaCy pipeline."""
    tagged = [Token(0, "Is", "AUX"), Token(3, "a", "DET"), Token(5, "red", "ADJ"), Token(9, "dog", "NOUN")]
    monkeypatch.setattr(keywords, "_spacy", lambda: lambda text: tagged)
    assert keywords.spacy_words("Is a red dog") == [(5, 8), (9, 12)]
    assert keywords.spacy_words("Is a red dog", ("NOUN",)) == [(9, 12)]
    extract, name = vlmfix.GIFT(content_tags=("ADJ",))._extractor()
    assert (list(extract("Is a red dog")), name) == ([(5, 8)], "spaCy en_core_web_sm")
    monkeypatch.setattr(keywords, "_spacy", lambda: None)
    assert vlmfix.GIFT()._extractor() == (content_words, "words without function words")
    with pytest.raises(ImportError, match=r"vlmfix\[gift\]"):
        keywords.spacy_words("Is a red dog")


def naive_tokens(
    model: PreTrainedModel, inputs: dict[str, Tensor], settings: dict[str, Any], steps: int
) -> Tensor:
    """Greedy tokens of one LLaVA sample: full matrices, the prompt read twice, nothing cached."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    ids = inputs["input_ids"][0].tolist()
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    start = max(place for place, token in enumerate(ids) if token == families.VISION_END) + 1
    question = torch.zeros_like(image)
    question[0, start:] = True
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        embeddings[image] = torch.cat(list(features))

    def full(states: Tensor, prompt: int, factors: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        length = states.shape[1]
        cos_sin = decoder.rotary_emb(states, torch.arange(length)[None])
        maps = []
        for index, layer in enumerate(decoder.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(states)
            query, key, value = (
                projection(normed).unflatten(-1, (-1, head_dim)).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, *cos_sin)
            key, value = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (key, value))
            scores = query @ key.transpose(2, 3) / head_dim**0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            weights = scores.softmax(dim=-1)
            maps.append(weights)
            first, last = settings["enhanced_layers"]
            if factors is not None and first <= index <= last:
                pad = [
                    torch.nn.functional.pad(each, (0, length - prompt)) for each in (factors, image, question)
                ]
                rows = naive_enhance(weights[:, :, prompt - 1 :], *pad, 0.5, settings.get("query_gain", 1.0))
                weights = torch.cat([weights[:, :, : prompt - 1], rows.float()], dim=2)
            attended = (weights @ value).transpose(1, 2).flatten(-2)
            states = states + attention.o_proj(attended)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return model.lm_head(decoder.norm(states)), maps

    tokens: list[int] = []
    with torch.no_grad():
        _, maps = full(embeddings, len(ids), None)
        attention = maps[settings["saliency_layer"]][0]
        rises = torch.stack(
            [(attention[:, row] - attention[:, row - 1]).clamp_min(0) for row in range(start, len(ids))]
        )
        rises = rises[:, :, image[0]]
        best = rises.sum(dim=(0, 2)).argsort(descending=True)[: heads // 2]
        saliency = rises[:, best].mean(dim=(0, 1))
        spread = 3 * saliency.std()
        saliency = saliency.clamp(saliency.mean() - spread, saliency.mean() + spread)
        saliency = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        factors = torch.ones(1, len(ids))
        factors[image] = torch.exp(settings["image_boost"] * saliency)
        for _ in range(steps):
            logits, _ = full(embeddings, len(ids), factors)
            tokens.append(int(logits[0, -1].argmax()))
            embeddings = torch.cat(
                [embeddings, model.get_input_embeddings()(torch.tensor([tokens[-1:]]))], dim=1
            )
    return torch.tensor(tokens)


@pytest.mark.parametrize(
    "settings",
    [
        {"saliency_layer": 2, "enhanced_layers": (1, 3), "image_boost": 5.0},
        {"saliency_layer": 0, "enhanced_layers": (0, 4), "image_boost": 3.0, "query_gain": 2.0},
        {"saliency_layer": 4, "enhanced_layers": (2, 2), "image_boost": 8.0},
    ],
    ids=str,
)
def test_against_full_matrices(settings: dict[str, Any], llava: PreTrainedModel) -> None:
    different = 0
    for seed in range(4):
        inputs = families.prompt("llava", llava, seed=seed)
        stock = llava.generate(**inputs, max_new_tokens=5, do_sample=False)
        with vlmfix.GIFT(**settings)(llava, families.PROCESSOR):
            output = llava.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert torch.equal(
            output[0, inputs["input_ids"].shape[1] :], naive_tokens(llava, inputs, settings, 5)
        )
        different += not torch.equal(output, stock)
    assert different


def test_the_prompt_is_read_once_and_its_last_token_again(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    lengths = []
    handle = (
        llava.get_decoder()
        .layers[0]
        .mlp.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    )
    with vlmfix.GIFT(saliency_layer=2, enhanced_layers=(1, 3))(llava, families.PROCESSOR):
        llava.generate(**inputs, max_new_tokens=3, do_sample=False)
    handle.remove()
    assert lengths == [inputs["input_ids"].shape[1], 1, 1, 1]


def test_own_keywords_and_their_fallback(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    asked = []

    def nothing(question: str) -> list[tuple[int, int]]:
        asked.append(question)
        return []

    method = vlmfix.GIFT(saliency_layer=2, enhanced_layers=(1, 3), keyword_extractor=nothing)
    with method(llava, families.PROCESSOR):
        llava.generate(**inputs, max_new_tokens=1, num_beams=2)
    words = [f"w{token}" for token in inputs["input_ids"][0].tolist()[-6:]]
    assert [question.split() for question in asked] == [words]
    assert method.edit_stats().details == {"keyword_extractor": "nothing", "keyword_fallback": 2}


def test_refusals(llava: PreTrainedModel) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match=r"GIFT\(\)\(model, processor\)"), vlmfix.GIFT()(llava):
        pass
    with pytest.raises(ValueError, match="calibrate"), vlmfix.GIFT()(llava, families.PROCESSOR):
        pass
    for settings, message in (
        ({"saliency_layer": 5, "enhanced_layers": (1, 2)}, "from 0 to 4"),
        ({"saliency_layer": 1, "enhanced_layers": (3, 2)}, "first and a last layer"),
    ):
        with pytest.raises(ValueError, match=message), vlmfix.GIFT(**settings)(llava, families.PROCESSOR):
            pass
    with pytest.raises(ValueError, match="image_boost is 21"):
        vlmfix.GIFT(image_boost=21)
