"""Heads of a concept: the pursuit, the words, and what is found in a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vlmfix
from tests.support import jobs
from vlmfix.calibration.calibrate import calibrate, write_profile
from vlmfix.calibration.concepts import ConceptWords, explained_shares, pursuit
from vlmfix.evaluation.datasets import demo_scene, render, sample_scene
from vlmfix.models.profiles import Profile

OUTPUTS = torch.tensor([[2.0, 1, 0], [0, 1, 2], [1, 3, 1], [3, 1, 3]], dtype=torch.float64)
WORDS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.float64)


def test_the_pursuit_of_the_spec() -> None:
    centred = OUTPUTS - OUTPUTS.mean(dim=0)
    assert (centred @ WORDS.T).abs().sum(dim=0).tolist() == [4, 3, 4, 4, 6]
    taken, share = pursuit(centred, WORDS, 1)
    assert taken == [4]
    assert (1 - share) * float(centred.square().sum()) == pytest.approx(7)
    taken, share = pursuit(centred, WORDS, 2)
    assert taken == [4, 3]
    assert share == pytest.approx(0.717949, abs=1e-6)
    assert explained_shares(OUTPUTS[None], WORDS, steps=2).tolist() == pytest.approx([0.717949], abs=1e-6)
    assert explained_shares(OUTPUTS[None], WORDS[3:]).tolist() == pytest.approx([0.717949], abs=1e-6)


def test_the_pursuit_at_its_edges() -> None:
    centred = OUTPUTS - OUTPUTS.mean(dim=0)
    taken, share = pursuit(centred, WORDS, 99)  # dependent rows, and fewer than steps
    assert sorted(taken) == [0, 1, 2, 3, 4]
    assert share == pytest.approx(1)
    assert pursuit(torch.zeros(4, 3, dtype=torch.float64), WORDS, 2)[1] == 0
    shares = explained_shares(torch.stack([OUTPUTS, torch.ones(4, 3)]), torch.stack([WORDS[0], 2 * WORDS[0]]))
    assert shares.tolist() == pytest.approx([5 / 13, 0])


def test_words_are_read(tmp_path: Path) -> None:
    file = tmp_path / "sizes.txt"
    file.write_text("# what is big\nbig\n\n large \nbig\n", encoding="utf-8-sig")
    assert ConceptWords.read(file) == ConceptWords("sizes", ("big", "large"))
    assert "red" in ConceptWords.read("colours").words
    assert len(ConceptWords.read("objects").words) == 80
    with pytest.raises(ValueError, match=r"words is 'colors' \(did you mean 'colours'\?\)"):
        ConceptWords.read("colors")
    file.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'sizes' has no words, or some that are no text; give one or more"):
        ConceptWords.read(file)
    file.write_bytes(b"\xff\xfe\x00big")
    with pytest.raises(ValueError, match=r"sizes.txt' is no text in UTF-8 \(invalid start byte\); save it"):
        ConceptWords.read(file)


def test_words_of_one_token(loaded: tuple) -> None:
    tokenizer = loaded[1].tokenizer
    ids, split = ConceptWords("colours", ("red", "red", "crimson")).token_ids(tokenizer)
    assert [tokenizer.decode(each) for each in ids] == [" red", "red"]
    assert split == ["crimson"]


def test_heads_are_ranked_as_a_slow_reference_does(loaded: tuple, tmp_path: Path) -> None:
    model, processor = loaded
    scenes = [render(sample_scene(0, seed)) for seed in range(4)]
    words = ConceptWords("colours", ("red", "blue", "crimson"))
    with pytest.warns(UserWarning, match="1 of 3 words are several tokens and left out: crimson"):
        found = calibrate("head_pursuit", model, processor, scenes, words=words)
    ranking = found.values["head_pursuit_heads"]["colours"]
    assert len(ranking) == 8
    shares = _slow_shares(model, processor, scenes, words)
    best = sorted(shares, key=lambda pair: -shares[pair])
    assert [tuple(pair) for pair in ranking] == best[:8]
    [first, *_] = ranking
    assert found.findings[f"head {first[0]}:{first[1]}"] == pytest.approx(shares[tuple(first)], abs=1e-4)

    path = write_profile(model, found, "m", tmp_path / "m.yaml")
    calibration = calibrate("head_pursuit", model, processor, scenes, words=ConceptWords("one", ("red",)))
    write_profile(model, calibration, "m", path)
    assert set(Profile.read(path).get("head_pursuit_heads")) == {"colours", "one"}


def _slow_shares(model, processor, scenes, words) -> dict[tuple[int, int], float]:  # type: ignore[no-untyped-def]
    from vlmfix.calibration.results import PROMPT, prompt_inputs

    ids, _ = words.token_ids(processor.tokenizer)
    span, _ = torch.linalg.qr(model.get_output_embeddings().weight.detach()[ids].double().T)
    layers = model.model.language_model.layers
    seen: dict[int, list[torch.Tensor]] = {}
    for scene in scenes:
        inputs = prompt_inputs(model, processor, scene, PROMPT)
        image = inputs["input_ids"][0] == model.config.image_token_id
        handles = [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, number=number, image=image: seen.setdefault(number, []).append(
                    args[0][0, image].mean(0)
                )
            )
            for number, layer in enumerate(layers)
        ]
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
    shares = {}
    size = layers[0].self_attn.head_dim
    for number, means in seen.items():
        for head in range(model.config.text_config.num_attention_heads):
            columns = slice(head * size, (head + 1) * size)
            weight = layers[number].self_attn.o_proj.weight.detach()[:, columns].double()
            written = torch.stack(means)[:, columns].double() @ weight.T
            written = written - written.mean(dim=0)
            shares[number, head] = float((written @ span).square().sum() / written.square().sum())
    return shares


def test_words_are_wanted_for_this_method_alone(loaded: tuple) -> None:
    words = ConceptWords("colours", ("red",))
    image = render(demo_scene())
    with pytest.raises(
        ValueError, match="head_pursuit is calibrated on the words of a concept; give --words"
    ):
        calibrate("head_pursuit", *loaded, [image])
    with pytest.raises(ValueError, match="var is not calibrated on the words of a concept; leave out words"):
        calibrate("var", *loaded, [image], words=words)
    with pytest.raises(ValueError, match="no word of 'colours' is a single token of this model"):
        calibrate("head_pursuit", *loaded, [image], words=ConceptWords("colours", ("crimson",)))
    result = jobs.cli("calibrate", "--images", "docs", "--method", "head_pursuit")
    assert result.exit_code == 2
    assert "error: head_pursuit is calibrated on the words of a concept" in result.stderr


def test_heads_come_from_the_profile(loaded: tuple) -> None:
    config = loaded[0].config
    profile = Profile(
        "m", {}, {"head_pursuit_heads": {"value": {"a": [[3, 1], [2, 0]]}, "source": "s"}}, Path()
    )
    assert vlmfix.HeadPursuit(num_heads=2).resolve(config, profile).heads == ((2, 0), (3, 1))
    assert vlmfix.HeadPursuit(concept="a").resolve(config, profile).heads == ((3, 1),)  # 1 of 64 of 48
