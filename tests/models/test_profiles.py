"""Profiles: shipped ones are sound, a user's own come first, broken ones are named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, PreTrainedConfig

import vlmfix
from vlmfix.models.loading import EMBEDDED, resolve
from vlmfix.models.profiles import Profile, configs_directory, find_profile, user_directory

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


def test_profiles_of_the_user_come_first_and_are_read_as_they_are_now() -> None:
    config = AutoConfig.from_pretrained(resolve("tiny-llava"))
    user_directory().mkdir(parents=True)
    for name in ("mine", "corrected"):
        content = {"name": name, "match": {"model_type": "llava"}, "values": {}}
        (user_directory() / "mine.yaml").write_text(yaml.safe_dump(content))
        found = find_profile(config)
        assert found is not None
        assert found.name == name


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2",
        "just text",
        {"name": "x"},
        {"name": "x", "match": {}, "values": {}},
        {"name": "x", "match": {"model_type": "llava"}, "values": {"n": {"value": 1}}},
        "\x00",
    ],
    ids=["no YAML", "text", "missing keys", "no model type", "no source", "binary"],
)
def test_broken_profiles_are_named(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"broken\.yaml is not a profile"):
        Profile.read(path)
