"""Profiles: shipped ones are sound, a user's own come first, broken ones are named."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, PreTrainedConfig

import vlmfix
from vlmfix.calibration.calibrate import write_profile
from vlmfix.calibration.results import Calibration
from vlmfix.models.digest import weights_digest
from vlmfix.models.embedded import EMBEDDED
from vlmfix.models.loading import resolve
from vlmfix.models.profiles import Profile, find_profile, user_directory
from vlmfix.settings import configs_directory

NEEDED = {
    vlmfix.VAR: "sink_dimensions",
    vlmfix.VHR: None,
    vlmfix.GIFT: "gift_saliency_layer",
    vlmfix.ADHH: "adhh_heads",
}
SHIPPED = sorted((configs_directory() / "models").glob("*.yaml"))


def config_of(profile: Profile, model_type: str) -> PreTrainedConfig:
    """A configuration of the shape that a profile is for."""
    text = {"model_type": "llama", **profile.match["text_config"]}
    if model_type.startswith("qwen"):
        text["model_type"] = f"{model_type}_text"
    config: PreTrainedConfig = AutoConfig.for_model(model_type, text_config=text)
    return config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profiles(path: Path) -> None:
    profile = Profile.read(path)
    types = profile.match["model_type"]
    for model_type in [types] if isinstance(types, str) else types:
        config = config_of(profile, model_type)
        assert [each.stem for each in SHIPPED if Profile.read(each).fits(config)] == [path.stem]
        for cls, needed in NEEDED.items():
            if needed is None or needed in profile.values:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that nobody has verified a value
                    cls().resolve(config, profile)
        for budget in profile.values.get("adaptinfer_schedules", {}).get("value", {}):
            vlmfix.AdaptInfer(budget=budget).resolve(config, profile)
    assert all(entry["source"] for entry in profile.values.values())


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_have_a_profile(name: str) -> None:
    profile = find_profile(AutoConfig.from_pretrained(resolve(name)))
    assert profile is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert profile.get("sink_threshold") < 20
    assert profile.get("a value that nobody knows") is None


def test_unverified_values_warn() -> None:
    profile = Profile("x", {}, {"n": {"value": 3, "source": "hearsay", "verified": False}}, Path("x.yaml"))
    with pytest.warns(UserWarning, match="n of x is unverified"):
        assert profile.get("n") == 3


def write(name: str, weights: str | None, **values: Any) -> Path:
    """A profile of the user, for checkpoints that look like tiny-llava."""
    match = {"model_type": "llava"} | ({} if weights is None else {"weights": weights})
    content = {
        "name": name,
        "match": match,
        "values": {key: {"value": value, "source": "a test"} for key, value in values.items()},
    }
    path = user_directory() / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_profiles_of_the_user_come_first_and_are_read_as_they_are_now() -> None:
    model, _ = vlmfix.load()
    for name in ("mine", "corrected"):
        write(name, weights_digest(model), sink_dimensions=[5])
        found = find_profile(model)
        assert found is not None
        assert found.name == name
        assert found.get("sink_dimensions") == [5]
        assert found.get("sink_threshold") == 6.5
        assert {key: (entry["profile"], entry["matched_by"]) for key, entry in found.used.items()} == {
            "sink_dimensions": (name, "weights"),
            "sink_threshold": ("tiny-llava", "type and shape"),
        }


def test_a_value_that_does_not_fit_the_model_is_refused_with_its_file() -> None:
    model, processor = vlmfix.load()
    path = write("mine", weights_digest(model), sink_dimensions=[9000], dyvte_exit_layer=30)
    for method, value in (("var", "sink_dimensions"), ("dyvte", "dyvte_exit_layer")):
        with pytest.raises(ValueError, match=rf"{value} is from {re.escape(str(path))}"):
            vlmfix.make_method(method)(model, processor).__enter__()
    with pytest.raises(ValueError, match=r"and -1 keeps them$"):
        vlmfix.DyVTE(exit_layer=30)(model, processor).__enter__()


def test_what_was_calibrated_on_a_fine_tune_leaves_the_stock_model_alone() -> None:
    stock, _ = vlmfix.load()
    fine_tune, _ = vlmfix.load()
    with torch.no_grad():
        fine_tune.get_decoder().layers[3].mlp.down_proj.weight.mul_(1.02)
    write_profile(fine_tune, Calibration({"sink_dimensions": [7]}, "a test"), "tiny-llava")
    for model, dimensions in ((fine_tune, [7]), (stock, [23, 117])):
        found = find_profile(model)
        assert found is not None
        assert found.get("sink_dimensions") == dimensions
    with torch.no_grad():
        fine_tune.get_decoder().layers[3].mlp.down_proj.weight.mul_(1.02)  # further trained
    found = find_profile(fine_tune)
    assert found is not None
    assert found.get("sink_dimensions") == [23, 117]


def test_a_profile_of_the_user_without_weights_is_left_out_with_a_warning() -> None:
    path = write("old", None, sink_dimensions=[5])
    with pytest.warns(UserWarning, match=r"mine\.yaml is left out: .* \(match.weights\); remove it and run"):
        found = find_profile(vlmfix.load()[0])
    assert found is not None
    assert found.path != path


@pytest.mark.parametrize("value", ["{folder}/missing", "{folder}/mine.yaml"])
def test_a_folder_of_profiles_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write("mine", None)
    monkeypatch.setenv("VLMFIX_PROFILES", value.format(folder=user_directory()))
    with pytest.raises(ValueError, match=r"VLMFIX_PROFILES is .* which is no folder; create it"):
        find_profile(vlmfix.load()[0])


VALID: dict[str, Any] = {
    "name": "x",
    "match": {"model_type": "llava"},
    "values": {"sink_dimensions": {"value": [3], "source": "hearsay"}},
}


def valued(**entries: Any) -> dict[str, Any]:
    """A profile with these values, each of some source."""
    return VALID | {"values": {name: {"value": value, "source": "s"} for name, value in entries.items()}}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[1, 2", "expected ',' or ']'"),
        ("just text", "it must be a mapping with name, match and values"),
        ("\x00", "special characters are not allowed"),
        ("[" * 5000, "nested too deeply"),
        (VALID | {"name": 3}, "name is 3; it must be a text"),
        ({"name": "x"}, "match is missing"),
        (VALID | {"match": {}}, "match.model_type is missing"),
        (VALID | {"match": {"model_type": ["llava", 3]}}, "match.model_type is ['llava', 3]"),
        (VALID | {"match": {"model_type": "llava", "text_config": 3}}, "match.text_config is 3"),
        (VALID | {"match": {"model_type": "llava", "weights": 12}}, "match.weights is 12"),
        (VALID | {"match": {"model_type": "llava", "shape": 3}}, "match.shape is unknown"),
        (VALID | {"values": [1]}, "values is [1]; it must be a mapping"),
        (VALID | {"values": {"n": 3}}, "values.n is 3; it must be a mapping with value and source"),
        (VALID | {"values": {"n": {"value": 1}}}, "values.n.source is missing"),
        (VALID | {"values": {"n": {"value": 1, "source": "s", "verified": 3}}}, "values.n.verified is 3"),
        (valued(sink_dimension=[3]), "did you mean sink_dimensions?"),
        (valued(sink_dimensions="abc"), "values.sink_dimensions.value is 'abc'; it must be a list of whole"),
        (valued(sink_dimensions=[True]), "values.sink_dimensions.value is [True]"),
        (valued(sink_threshold=float("nan")), ".nan is no finite number"),
        (valued(gift_enhanced_layers=[3]), "values.gift_enhanced_layers.value is [3]"),
        (valued(adhh_heads=[[1, 2, 3]]), "values.adhh_heads.value is [[1, 2, 3]]"),
        (valued(adaptinfer_schedules={"a": {"prune_layers": [1]}}), "values.adaptinfer_schedules.value"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "file",
)
def test_broken_profiles_are_named_with_their_field(content: Any, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"broken\.yaml is not a profile: ") as caught:
        Profile.read(path)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ValueError, match=r"folder\.yaml is not a profile"):
        Profile.read(tmp_path / "folder.yaml")
