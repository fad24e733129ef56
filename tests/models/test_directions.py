"""Files of directions: what is written is read, and what is for something else is refused in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedConfig

import vlmfix
from vlmfix.models.digest import weights_digest
from vlmfix.models.directions import read_directions, write_directions
from vlmfix.models.profiles import find_profile, user_directory

TINY = vlmfix.VTI(alpha_image=0)


def config_of(**text: int) -> PreTrainedConfig:
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, **text}
    config: PreTrainedConfig = AutoConfig.for_model("llava", text_config={"model_type": "llama", **shape})
    return config


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.safetensors"
    sliced = torch.arange(16.0).view(8, 2).T  # not contiguous
    write_directions(path, "vti", config_of(), {"text": sliced, "image": torch.ones(1, dtype=torch.float16)})
    found = read_directions(path, "vti", config_of())
    assert torch.equal(found["text"], sliced)
    assert found["image"].dtype == torch.float32
    assert list(tmp_path.iterdir()) == [path]
    found.clear()  # the caller's own
    write_directions(path, "vti", config_of(), {"text": sliced + 1})
    os.utime(path, ns=(1, 1))
    assert torch.equal(read_directions(str(path), "vti", config_of())["text"], sliced + 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert set(read_directions("~/some.safetensors", "vti", config_of())) == {"text"}


@pytest.mark.parametrize(
    ("method", "config", "fault"),
    [
        ("nullu", config_of(), "is for method 'vti', and not 'nullu'"),
        ("vti", config_of(hidden_size=16), "is for hidden size '8', and not '16'"),
        ("vti", config_of(num_hidden_layers=3), "is for num hidden layers '2', and not '3'"),
        ("vti", AutoConfig.for_model("qwen2_5_vl"), "is for model type 'llava', and not 'qwen2_5_vl'"),
    ],
)
def test_a_file_for_something_else_is_refused(
    method: str, config: PreTrainedConfig, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.safetensors"
    write_directions(path, "vti", config_of(), {"text": torch.ones(2, 8)})
    with pytest.raises(
        ValueError, match=f"{fault}; make one for this model by 'vlmfix calibrate --method {method}'"
    ):
        read_directions(path, method, config)


def no_file(path: Path) -> None:
    pass


def folder(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("no tensors")


def foreign(path: Path) -> None:
    save_file({"text": torch.ones(2, 8)}, path)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (no_file, r"there is no file .*missing\.safetensors'; make it by"),
        (folder, r"missing\.safetensors' cannot be read \(.*\); make it by"),
        (text, r"missing\.safetensors' cannot be read \(.*\); make it by"),
        (foreign, r"missing\.safetensors' is no file of directions of vlmfix; make one by"),
    ],
    ids=["no_file", "folder", "text", "foreign"],
)
def test_a_file_that_is_none_is_refused_in_a_line(
    make: Callable[[Path], None], fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "missing.safetensors"
    make(path)
    with pytest.raises(ValueError, match=fault) as caught:
        vlmfix.VTI(directions=str(path)).resolve(config_of(), None)
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_to_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        write_directions(tmp_path / "missing" / "some", "vti", config_of(), {"text": torch.ones(2, 8)})
    assert list(tmp_path.iterdir()) == []


def test_a_profile_names_a_file_beside_it() -> None:
    model, _ = vlmfix.load()
    values = {"vti_directions": {"value": "mine.safetensors", "source": "a test"}}
    match = {"model_type": "llava", "weights": weights_digest(model)}
    path = user_directory() / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "match": match, "values": values}))
    named = re.escape(str(user_directory()))
    with pytest.raises(
        ValueError,
        match=f"vti_directions of mine names 'mine.safetensors', which is not in {named} or .*; put",
    ):
        TINY.resolve(model.config, find_profile(model))
    file = user_directory() / "mine.safetensors"
    write_directions(file, "vti", model.config, {"text": torch.ones(8, 192)})
    assert TINY.resolve(model.config, find_profile(model)).directions == str(file)
    write_directions(file, "nullu", model.config, {"subspaces": torch.ones(8, 1, 192)})
    with pytest.raises(ValueError, match="is for method 'nullu', and not 'vti'"):
        TINY.resolve(model.config, find_profile(model))


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_embedded_models_have_directions(name: str) -> None:
    model, _ = vlmfix.load(name)
    profile = find_profile(model)
    vti = vlmfix.VTI().resolve(model.config, profile)
    assert vti.alpha_image == (0.9 if name == "tiny-llava" else 0)
    assert vti.directions is not None
    tensors = read_directions(vti.directions, "vti", model.config)
    assert tensors["text"].shape == (8, 192)
    nullu = vlmfix.Nullu().resolve(model.config, profile)
    assert nullu.directions is not None
    [subspaces] = read_directions(nullu.directions, "nullu", model.config).values()
    rank = subspaces.shape[1]
    torch.testing.assert_close(subspaces @ subspaces.mT, torch.eye(rank).expand(8, -1, -1), atol=1e-5, rtol=0)
