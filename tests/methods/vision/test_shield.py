"""SHIELD: the vectors of its specification, and whole answers of an embedded model written down again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, CLIPConfig, CLIPModel

import vlmfix
from tests.support import zoo
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare
from vlmfix.methods.logits.base import contrast, plausible
from vlmfix.methods.multi_pass import NO_IMAGE
from vlmfix.methods.vision.shield import shield
from vlmfix.methods.vision.shield.passes import ShieldRepair, with_inserts
from vlmfix.methods.vision.shield.repairs import kept_words, matches, patch_weights, repaired, token_runs
from vlmfix.methods.vision.shield.results import ShieldedAnswer
from vlmfix.methods.vision.shield.shield import SHIELD
from vlmfix.methods.vision.shield.text_tower import TextTower, attacked

PICTURES = [render(sample_scene(3, index)) for index in range(2)]
CAPTION = "Describe the image."
MATCHES = torch.tensor([[0.30, 0.05, 0.10], [0.12, 0.02, 0.20], [0.08, 0.04, 0.05], [0.20, 0.09, 0.06]])
QUICK = {"caption_prompt": CAPTION, "caption_tokens": 16, "noise_images": 3, "steps": 3}
MILD = {"alpha": 0.5, "beta": 0.1}


@pytest.fixture(scope="module")
def llava() -> tuple[Any, Any]:
    return vlmfix.load("tiny-llava")


@pytest.fixture(scope="module")
def clip(llava: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random CLIP whose vision encoder has the sizes of the embedded model's."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    of_text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"vocab_size": 701, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    of_vision = {**llava[0].config.vision_config.to_dict(), "num_hidden_layers": 1}
    config = CLIPConfig(text_config=of_text | ids, vision_config=of_vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    llava[1].tokenizer.save_pretrained(folder)
    return str(folder)


def test_vector_of_the_gains() -> None:
    kept = kept_words(MATCHES, 0.095)
    assert kept.tolist() == [True, False, True]
    for cut, expected in ((0.1, [1, 0.162284, 0, 0.162284]), (0.25, [1, 0, 0, 0])):
        weights = patch_weights(MATCHES, kept, gamma=3, gain_cut=cut)
        torch.testing.assert_close(weights, torch.tensor(expected).float(), atol=1e-6, rtol=0)
    features = torch.tensor([[1, -2], [0.5, 0.5], [2, 1], [1, 1]])
    changed = repaired(features, torch.full((4, 2), 0.2), weights, 0.1)
    expected = [[1.98, -4.02], [0.48, 0.48], [1.98, 0.98], [0.98, 0.98]]
    torch.testing.assert_close(changed, torch.tensor(expected), atol=1e-6, rtol=0)


def test_no_gain_without_two_words_or_where_patches_are_alike() -> None:
    for kept in ([False, True, False], [False] * 3):
        assert not patch_weights(MATCHES, torch.tensor(kept), gamma=3, gain_cut=0).any()
    assert not patch_weights(torch.ones(4, 3), torch.ones(3).bool(), gamma=3, gain_cut=0).any()


def test_vector_of_the_runs() -> None:
    kept = torch.zeros(12, dtype=torch.bool)
    kept[[0, 1, 2, 5, 6, 9]] = True
    assert token_runs(kept, 16) == [(0, 2), (6, 8), (12, 12)]
    assert token_runs(torch.ones(3, dtype=torch.bool), 7) == [(0, 4)]
    assert token_runs(torch.zeros(3, dtype=torch.bool), 7) == []


def test_vector_of_the_logits() -> None:
    logits, branch = torch.tensor([[2, 1.5, 0.2, -1]]), torch.tensor([[1, 1.6, 0.4, -1.2]])
    kept = plausible(logits, 0.35)
    assert kept.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(contrast(logits, branch, 2.0)[kept], torch.tensor([4, 1.3]))


def test_features_are_pooled_to_the_width_of_the_words() -> None:
    features = torch.tensor([[1.0, 5, 2, 4, 3]])
    found = matches(features, torch.eye(3))
    torch.testing.assert_close(found, torch.tensor([[5.0, 5, 4]]) / 66**0.5)  # of [5, 5, 4]
    wide, words = torch.randn(7, 160), torch.randn(4, 24)
    windows = [(i * 160 // 24, -(-(i + 1) * 160 // 24)) for i in range(24)]
    pooled = torch.stack([wide[:, start:stop].amax(dim=1) for start, stop in windows], dim=1)
    expected = torch.cosine_similarity(pooled[:, None], words[None], dim=-1)
    torch.testing.assert_close(matches(wide, words), expected)


def test_attack_against_adam_written_down() -> None:
    """The logit of a known gradient; pixel 3 reaches the bound, and none leaves the picture."""
    slope = torch.tensor([1.0, -2.0, 0.5, 4.0])
    image = torch.tensor([0.5, 0.9, 0.1, 0.9])
    bounds = torch.tensor(0.0), torch.tensor(1.0)
    settings: dict[str, Any] = {"epsilon": 0.05, "scale": 2.0, "rate": 0.02}
    found = attacked(image, lambda pixels: slope @ pixels + 9, bounds, steps=4, **settings)
    delta, mean, square = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    for step in range(1, 5):
        shown = image + 2 * delta
        gradient = 2 * slope * ((shown >= 0) & (shown <= 1))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        move = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        delta = (delta - 0.02 * move).clamp(-0.05, 0.05)
    torch.testing.assert_close(found, (image + 2 * delta).clamp(0, 1))
    assert found[3] == pytest.approx(0.8)
    assert found[1] <= 1
    # It stops as soon as the logit is below 0.
    stopped = attacked(image, lambda pixels: slope @ pixels - 9, bounds, steps=4, **settings)
    assert torch.equal(stopped, image)


def test_words_go_after_their_image() -> None:
    ids = torch.tensor([[5, 3, 3, 6, 3, 3, 7]])
    inputs = BatchFeature({"input_ids": ids, "attention_mask": ids * 0 + 1, "kinds": (ids == 3).int()})
    longer, inserted = with_inserts(inputs, 3, [2, 2], [[8, 9], [4]])
    assert longer["input_ids"].tolist() == [[5, 3, 3, 8, 9, 6, 3, 3, 4, 7]]
    assert longer["attention_mask"].tolist() == [[1] * 10]
    assert longer["kinds"].tolist() == [[0, 1, 1, 0, 0, 0, 1, 1, 0, 0]]
    assert inserted.nonzero().flatten().tolist() == [3, 4, 8]
    assert inputs["input_ids"].shape == (1, 7)
    with pytest.raises(vlmfix.UnsupportedError, match="the pictures make 5 tokens, but the prompt holds 4"):
        with_inserts(inputs, 3, [2, 3], [[], []])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"parts": ("weight",)}, "parts is .*; it must hold some of weights, caption, bias, attack"),
        ({"parts": ("bias", "bias")}, "parts is"),
        ({"clip": ""}, "clip is ''"),
        ({"alpha": -1}, "alpha is -1"),
        ({"gain_cut": 1.5}, "gain_cut is 1.5; it must be a number from 0 to 1"),
        ({"gamma": 0}, "gamma is 0"),
        ({"attack_rate": 0}, "attack_rate is 0"),
        ({"noise_images": 0}, "noise_images is 0"),
        ({"caption_prompt": " "}, "caption_prompt is ' '"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SHIELD(**parameters)


def features_of(model: Any, pixels: Tensor) -> Tensor:
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer][:, 1:]


def next_logits(model: Any, ids: Tensor, features: Tensor, written: Tensor) -> Tensor:
    """Logits after a prompt with these features of its picture before the projector, without a cache."""
    ids = torch.cat([ids, written])
    embeddings = model.get_input_embeddings()(ids).clone()
    embeddings[ids == model.config.image_token_id] = model.model.multi_modal_projector(features)[0]
    return model(inputs_embeds=embeddings[None]).logits[0, -1]


@pytest.mark.parametrize("parts", [shield.PARTS, ("bias",)])
def test_answer_step_by_step(parts: tuple[str, ...], llava: tuple[Any, Any], clip: str) -> None:
    """Against the whole of the method written down again."""
    model, processor = llava
    method = SHIELD(
        clip=clip,
        parts=parts,
        text_threshold=0.205,
        gain_cut=0.3,
        bias_weight=0.5,
        alpha=0.5,
        beta=0.1,
        **QUICK,
    )
    result = method.run(model, processor, PICTURES[0], CAPTION, max_new_tokens=6)
    inputs = prepare([[PICTURES[0]]], [CAPTION], processor)
    first = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    caption = processor.decode(first, skip_special_tokens=True)
    caption = caption[: caption.rfind(".") + 1].strip()
    assert caption
    tower = CLIPModel.from_pretrained(clip)
    text = processor.tokenizer(caption, return_tensors="pt")
    text = {name: text[name] for name in ("input_ids", "attention_mask")}
    pixels = inputs["pixel_values"]
    mean, deviation = (
        torch.tensor(each)[:, None, None]
        for each in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    hostile = attacked(
        pixels[0],
        lambda each: tower(pixel_values=each[None], **text).logits_per_image[0, 0],
        (-mean / deviation, (1 - mean) / deviation),
        epsilon=0.14,
        steps=3,
        scale=12,
        rate=0.02,
    )
    with torch.no_grad():
        features = features_of(model, pixels)
        words = tower.text_model(**text).last_hidden_state[0, 1:]
        matched = matches(features[0], words)
        kept = kept_words(matched, 0.205)
        assert 2 <= int(kept.sum()) < len(kept)
        gains = patch_weights(matched, kept, gamma=3, gain_cut=0.3)
        ids = processor.tokenizer(caption)["input_ids"]
        runs = [ids[a : b + 1] for a, b in token_runs(kept, len(ids))]
        insert = torch.tensor([each for run in runs for each in run])
        noise = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        bias = features_of(model, noise).mean(dim=0)
        changed = repaired(features, bias, gains * ("weights" in parts), 0.5 * ("bias" in parts))
        prompt = inputs["input_ids"][0]
        after = int((prompt == model.config.image_token_id).nonzero()[-1]) + 1
        longer = torch.cat([prompt[:after], insert, prompt[after:]]) if "caption" in parts else prompt
        written = torch.zeros(0, dtype=torch.int64)
        for _ in range(6):
            logits = next_logits(model, longer, changed, written)
            if "attack" in parts:
                branch = next_logits(model, prompt, features_of(model, hostile[None]), written)
                possible = logits >= logits.max() + torch.tensor(0.1).log()
                logits = (1.5 * logits - 0.5 * branch).masked_fill(~possible, -torch.inf)
            written = torch.cat([written, logits.argmax()[None]])
            if int(written[-1]) == model.generation_config.eos_token_id:
                break
    assert result.final is not None
    assert list(result.final.token_ids) == written.tolist()
    assert result.shielded
    [picture] = result.pictures
    assert picture.caption == (caption if parts != ("bias",) else "")
    assert (picture.gains is not None) == ("weights" in parts)
    assert bool(picture.words) == ("caption" in parts)
    if "attack" in parts:
        assert picture.logits is not None
        assert picture.logits[1] < picture.logits[0]


@pytest.mark.parametrize(
    ("parameters", "picture", "reason"),
    [
        ({"parts": ()}, PICTURES[0], SHIELD.identity_reason),
        (
            {"alpha": 0, "beta": 0, "bias_weight": 0, "gain_cut": 1, "parts": ("weights", "bias", "attack")},
            PICTURES[0],
            SHIELD.identity_reason,
        ),
        ({}, None, NO_IMAGE),
    ],
    ids=["no part", "no strength", "text only"],
)
@pytest.mark.parametrize("decoding", [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 3.0}])
def test_without_parts_the_answer_is_plain_decoding(
    parameters: dict[str, Any], picture: Any, reason: str, decoding: dict[str, Any], llava: tuple[Any, Any]
) -> None:
    torch.manual_seed(0)
    plain = vlmfix.generate(*llava, picture, CAPTION, max_new_tokens=8, **decoding)
    torch.manual_seed(0)
    result = SHIELD(**parameters).run(*llava, picture, CAPTION, max_new_tokens=8, **decoding)
    assert (result.answer, result.shielded, result.reason, result.pictures) == (plain, False, reason, ())


def test_beams_without_a_cache_and_half_precision(llava: tuple[Any, Any], clip: str) -> None:
    model, processor = llava
    method = SHIELD(clip=clip, alpha=0.5, beta=0.1, text_threshold=0.205, gain_cut=0.3, **QUICK)
    found = {
        use_cache: method.run(
            model, processor, PICTURES[1], CAPTION, max_new_tokens=5, num_beams=2, use_cache=use_cache
        ).answer
        for use_cache in (True, False)
    }
    assert found[True] == found[False]
    half = vlmfix.load("tiny-llava", dtype="bfloat16")
    result = SHIELD(clip=clip, **QUICK).run(*half, PICTURES[1], CAPTION, max_new_tokens=3)
    assert result.shielded
    assert result.answer


def test_without_a_full_stop_nothing_is_changed(llava: tuple[Any, Any], clip: str) -> None:
    method = SHIELD(clip=clip, parts=("weights", "caption", "attack"), **QUICK | {"caption_tokens": 2})
    result = method.run(*llava, PICTURES[0], CAPTION, max_new_tokens=6)
    assert result.answer == vlmfix.generate(*llava, PICTURES[0], CAPTION, max_new_tokens=6)
    assert (result.shielded, result.reason) == (False, shield.NO_CAPTION)
    method = SHIELD(clip=clip, parts=("weights", "caption"), text_threshold=1, **QUICK)
    result = method.run(*llava, PICTURES[0], CAPTION, max_new_tokens=6)
    assert result.reason == shield.NO_WORDS
    assert method.edit_stats().rows_skipped == {shield.NO_WORDS: 1}


def test_pictures_are_looked_at_once_and_each_by_itself(llava: tuple[Any, Any], clip: str) -> None:
    model, processor = llava
    method = SHIELD(clip=clip, text_threshold=0.205, gain_cut=0.3, **QUICK)
    alone = [method.run(model, processor, each, CAPTION, max_new_tokens=1).pictures[0] for each in PICTURES]
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    encoded = []
    hook = model.base_model.vision_tower.register_forward_pre_hook(
        lambda module, args: encoded.append(len(args[0]))
    )
    both = method.run(model, processor, PICTURES, CAPTION, max_new_tokens=1)
    hook.remove()
    assert encoded == [2, 2]  # to know them again, and for the answer
    for own, other in zip(alone, both.pictures, strict=True):
        assert own.words
        assert (own.caption, own.words, own.logits) == (other.caption, other.words, other.logits)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before
    assert not torch.is_inference_mode_enabled()


def test_it_acts_under_inference_mode(llava: tuple[Any, Any], clip: str) -> None:
    with torch.inference_mode():
        result = SHIELD(clip=clip, **QUICK).run(*llava, PICTURES[0], CAPTION, max_new_tokens=2)
    assert result.pictures[0].attacked is not None


def test_pictures_of_other_methods_stay(llava: tuple[Any, Any]) -> None:
    """The noised picture of VCD is none that is repaired, nor is anything of another size."""
    features, bias, gains = torch.randn(2, 4, 6), torch.randn(4, 6), torch.rand(2, 4)
    repair = ShieldRepair(features=features, bias=bias, weights=gains, bias_weight=0.5)
    given = torch.stack([features[1] + 1e-4, features[0] + 0.5, features[0]])
    [found] = repair._repair(torch.nn.Identity(), (given,))
    expected = repaired(given, bias, gains[[1, 0, 0]], 0.5)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert torch.equal(found[1], given[1])
    assert repair._repair(torch.nn.Identity(), (given[:, :3],)) is None
    methods = [SHIELD(parts=("bias",), **QUICK), vlmfix.VCD()]
    assert vlmfix.generate(*llava, PICTURES[0], CAPTION, methods, max_new_tokens=2)
    assert [each.edit_stats().rows for each in methods] == [1, 1]


def test_it_refuses_what_it_cannot_change(llava: tuple[Any, Any], clip: str) -> None:
    model, processor = llava
    with pytest.raises(ValueError, match=r"clip is not given.*or parts=bias"):
        vlmfix.generate(model, processor, PICTURES[0], CAPTION, "shield")
    with pytest.raises(vlmfix.UnsupportedError, match="is not a CLIP or SigLIP encoder"):
        SHIELD(clip=clip).run(*vlmfix.load("tiny-qwen2.5-vl"), PICTURES[0], CAPTION)
    with pytest.raises(vlmfix.UnsupportedError, match="VCD defines the logits of this model already"):
        vlmfix.generate(model, processor, PICTURES[0], CAPTION, [vlmfix.VCD(), SHIELD(clip=clip, **QUICK)])
    with pytest.raises(vlmfix.UnsupportedError, match="needs the processor and the image: use vlmfix"):
        SHIELD()(model)
    with pytest.raises(ValueError, match="of type 'llava', and no CLIP with a text encoder"):
        SHIELD(clip="tiny-llava", **QUICK).run(model, processor, PICTURES[0], CAPTION)
    tower = TextTower(clip, torch.device("cpu"))
    with pytest.raises(vlmfix.UnsupportedError, match="reads pictures of 98 pixels and has 160"):
        tower.check(torch.zeros(1, 4, 160), torch.zeros(1, 3, 98, 98))
    asked = [{"type": "video", "video": PICTURES}, {"type": "text", "text": "?"}]
    video = [{"role": "user", "content": asked}]
    with pytest.raises(vlmfix.UnsupportedError, match="the prompt holds a video"):
        vlmfix.generate(model, processor, messages=video, method=SHIELD(clip=clip))


def test_of_other_encoders_the_bias_alone(clip: str) -> None:
    """A SigLIP, which has no text encoder here."""
    model, processor = zoo.build("paligemma"), zoo.processor("paligemma")
    plain = vlmfix.generate(model, processor, PICTURES[0], "a", max_new_tokens=3)
    result = SHIELD(parts="bias", bias_weight=5, noise_images=2).run(
        model, processor, PICTURES[0], "a", max_new_tokens=3
    )
    assert result.answer != plain
    assert result.shielded
    with pytest.raises(vlmfix.UnsupportedError, match=r"paligemma is no CLIP, .*; use SHIELD with"):
        SHIELD(clip=clip).run(model, processor, PICTURES[0], "a")


def test_what_it_looked_at_is_saved(llava: tuple[Any, Any], clip: str, tmp_path: Path) -> None:
    picture = PICTURES[0].resize((160, 112))
    method = SHIELD(clip=clip, text_threshold=0.205, gain_cut=0.3, **QUICK)
    result = method.run(*llava, picture, CAPTION, max_new_tokens=1)
    written = result.save(tmp_path / "pictures", "dog")
    assert [path.name for path in written] == ["dog-1-map.png", "dog-1-attacked.png"]
    assert [Image.open(path).size for path in written] == [(160, 112), (112, 112)]
    assert ShieldedAnswer(answer="Yes").save(tmp_path, "none") == []
