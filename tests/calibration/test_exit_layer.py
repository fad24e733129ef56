"""The exit layer of DyVTE: labels, what a calibration finds, and gates trained on the labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vlmfix
from training.train_gates import fit, measured
from vlmfix.calibration.calibrate import calibrate
from vlmfix.calibration.exit_layer import ExitTrial, exit_labels, exit_trials
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare
from vlmfix.models.directions import write_directions


def test_labels() -> None:
    agreement = torch.tensor([1.0, 1.0, 0.98, 0.99])
    loss = torch.tensor([1.029, 1.031, 1.0, 1.0])
    assert exit_labels(agreement, loss, torch.tensor(1.0)).tolist() == [True, False, False, False]


def test_trials_are_answers_without_the_image_in_later_layers(tmp_path: Path) -> None:
    model, processor = vlmfix.load("tiny-llava")
    picture = render(sample_scene(7, 1))
    [caption, question] = trials = list(exit_trials(model, processor, [picture], None))
    inputs = prepare([[picture]], ["Describe the image."], processor)
    start = inputs["input_ids"].shape[1]
    whole = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    answer = whole[0, start:]
    assert caption.agreement.shape == question.loss.shape == (7,)
    for layer in (2, 5):
        with vlmfix.DyVTE(exit_layer=layer)(model):
            output = model.generate(
                **inputs,
                max_new_tokens=len(answer),
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        # Up to the first other token, decoding is what was read at once.
        found = output.sequences[0, start:]
        same = int((found[: len(answer)] == answer[: len(found)]).cumprod(dim=0).sum())
        kept = caption.agreement[layer] * len(answer)
        assert (same == len(answer)) == (round(float(kept)) == len(answer))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[3][0]
    image = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero().max())
    expected = torch.cat([states[image + 1 : -1].mean(dim=0), states[-1]])
    torch.testing.assert_close(caption.features[2], expected, atol=1e-4, rtol=1e-4)

    features = torch.stack([each.features for each in trials])
    labels = torch.stack([torch.arange(7) > 2, torch.arange(7) > 4])
    gates = fit(features, labels, gate_hidden=8, epochs=60, rate=1e-2)
    assert set(measured(gates, trials)) >= {"labels told", "answers that stay"}
    write_directions(tmp_path / "gates", "dyvte", model.config, dict(gates.state_dict()))
    for prompt, exits in (("Describe the image.", 3), ("Is there a person in the image?", 5)):
        method = vlmfix.DyVTE(gate_weights=str(tmp_path / "gates"))
        vlmfix.generate(model, processor, picture, prompt, method, max_new_tokens=1)
        assert method.edit_stats().details["schedule"] == [{"before layer": exits + 1, "image tokens": 0.0}]


def test_the_first_layer_that_is_late_enough_or_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 answers, none stay after layer 0, 37 after layer 1, 38 after layers 2 and 3."""
    one = torch.ones(4)

    def trial(number: int) -> ExitTrial:
        agreement = torch.tensor([0.5, float(number < 37), float(number < 38), float(number < 38)])
        return ExitTrial(torch.zeros(4, 2), agreement, one, torch.tensor(1.0))

    monkeypatch.setattr("vlmfix.calibration.exit_layer.exit_trials", lambda *_: map(trial, range(40)))
    found = calibrate("dyvte", *vlmfix.load("tiny-llava"), [render(sample_scene(7, 0))])
    assert found.values == {"dyvte_exit_layer": 2}
    assert "may leave in 95.0 % of 40 answers, the first layer with 95 % or more" in found.source
    assert found.findings["answers that stay, by layer"] == [0, 0.925, 0.95, 0.95]
    assert found.findings["tokens that stay, by layer"] == [0.5, 0.925, 0.95, 0.95]
    monkeypatch.setattr("vlmfix.calibration.exit_layer.exit_trials", lambda *_: [trial(0), trial(39)])
    with pytest.warns(
        UserWarning, match=r"after layer 3 image tokens may leave in 50.0 % .* 95 % after none"
    ):
        found = calibrate("dyvte", *vlmfix.load("tiny-llava"), [render(sample_scene(7, 0))])
    assert found.values == {"dyvte_exit_layer": 3}
