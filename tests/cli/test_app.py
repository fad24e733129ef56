"""The command line: what people see, and one line on stderr with exit code 2 for what they can mend."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vlmfix
from tests.support.paths import ROOT
from vlmfix.cli.app import app
from vlmfix.cli.options import strict
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.models.loading import resolve

SHORT = ("--max-new-tokens", "8")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        render(sample_scene(1, index)).save(folder / f"{index}.png")
    return folder


def test_plain_answer_about_the_demo_scene() -> None:
    result = run("generate", *SHORT)
    assert result.exit_code == 0
    assert result.stdout.strip()
    assert result.stdout == run("generate", "--method", "greedy", *SHORT).stdout


def test_comparison_shows_both() -> None:
    result = run("generate", "--method", "var", "--compare", *SHORT)
    assert result.exit_code == 0
    assert "greedy" in result.stdout
    assert "var" in result.stdout


def test_json_is_all_there_is_on_stdout(pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"not a picture")
    result = run(
        "generate",
        "--image",
        pictures,
        "--method",
        "var",
        "--set",
        "moved_fraction=0.6",
        "--compare",
        "--json",
        *SHORT,
    )
    document = json.loads(result.stdout)
    assert document["method"] == "var"
    assert document["parameters"]["var"]["moved_fraction"] == 0.6
    assert document["activity"]["var"]["rows"] == 3
    assert 0 < document["activity"]["var"]["head_share"] < 1
    assert [Path(each["image"]).name for each in document["results"]] == ["0.png", "1.png", "2.png"]
    assert all(set(each["answers"]) == {"greedy", "var"} for each in document["results"])
    assert [Path(each["image"]).name for each in document["failures"]] == ["broken.png"]
    assert result.exit_code == 2
    assert "1 of 4 pictures could not be read" in result.stderr


def test_answers_equal_the_library(pictures: Path) -> None:
    paths = sorted(pictures.iterdir())
    result = run("generate", "--image", paths[0], "--image", paths[2], "--json", *SHORT)
    answers = [each["answers"]["greedy"] for each in json.loads(result.stdout)["results"]]
    expected = vlmfix.generate(*vlmfix.load(), [paths[0], paths[2]], "Describe the image.", max_new_tokens=8)
    assert answers == expected


def test_sampling_follows_the_seed() -> None:
    sampled = [
        run("generate", "--temperature", "2", "--seed", seed, "--max-new-tokens", "20").stdout
        for seed in "112"
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_several_methods_with_settings_of_their_own() -> None:
    options = ("--set", "var.moved_fraction=0.9", "--set", "vhr.head_scale=1.5", "--json", *SHORT)
    document = json.loads(run("generate", "--method", "var+vhr", *options).stdout)
    assert document["parameters"]["var"]["moved_fraction"] == 0.9
    assert document["parameters"]["vhr"]["head_scale"] == 1.5
    assert all(activity["steps_edited"] == 8 for activity in document["activity"].values())


def test_maps_of_carve_are_saved(pictures: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    result = run(
        "generate", "--image", pictures, "--method", "carve", "--compare", "--save-maps", maps, *SHORT
    )
    assert result.exit_code == 0, result.stderr
    assert {"0001-0-map.png", "0002-1-map.png", "0003-2-map.png"} <= {path.name for path in maps.iterdir()}
    assert f"{len(list(maps.iterdir()))} pictures in" in result.stdout


def test_a_method_that_does_nothing_says_so() -> None:
    result = run("generate", "--method", "random_tokens", *SHORT)
    assert "edited 0 of 64 sites" in result.stderr
    assert "lower it" in result.stderr


def test_a_sampled_row_is_not_called_greedy() -> None:
    document = json.loads(run("generate", "--temperature", "2", "--json", *SHORT).stdout)
    assert document["method"] == "sampling"
    assert document["decoding"]["sampling"] == {
        "do_sample": True,
        "max_new_tokens": 8,
        "num_beams": 1,
        "temperature": 2.0,
        "top_k": 0,
        "top_p": 1.0,
    }


def test_json_says_which_profile_and_which_settings_of_the_checkpoint(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve("tiny-llava"), model)
    settings = {"eos_token_id": 1, "pad_token_id": 2, "repetition_penalty": 5.0, "num_beams": 3}
    (model / "generation_config.json").write_text(json.dumps(settings))
    document = json.loads(run("generate", "--model", model, "--method", "var", "--json", *SHORT).stdout)
    assert document["profile"]["var"]["sink_dimensions"] == {
        "profile": "tiny-llava",
        "value": [23, 117],
        "source": "planted there in training (training/sinks.py)",
        "matched_by": "type and shape",
    }
    assert document["generation_config_set_aside"] == {"repetition_penalty": 5.0, "num_beams": 3}
    assert document["decoding"]["var"]["repetition_penalty"] == 1.0
    stock = json.loads(run("generate", "--method", "var", "--json", *SHORT).stdout)
    assert document["results"] == stock["results"]


def test_missing_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve("tiny-llava"), model)
    weights = load_file(model / "model.safetensors")
    for name in [name for name in weights if ".layers.7." in name]:
        del weights[name]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    refused = run("generate", "--model", model, *SHORT)
    assert refused.exit_code == 2
    assert "9 weights missing, which would be random: model.language_model.layers.7." in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    allowed = run("generate", "--model", model, "--allow-missing", *SHORT)
    assert allowed.exit_code == 0
    assert "warning: " in allowed.stderr
    assert "9 weights missing" in allowed.stderr


def test_which_methods_work_on_a_model() -> None:
    result = run("methods", "--model", "tiny-llava")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.replace("│", " ").split())
    assert re.search(
        r"var yes sink_threshold = 6.5 .* of profile tiny-llava, by type and shape: \[23, 117", text
    )
    assert "pyramid_drop no no schedule of PyramidDrop is published for 8 layers" in text
    assert re.search("weights: sampled-sha256:[0-9a-f]{32}$", text)


def test_methods_table() -> None:
    result = run("methods")
    assert result.exit_code == 0
    for name, cls in vlmfix.list_methods().items():
        assert name in result.stdout
        assert cls.info.paper[:20] in result.stdout  # a long address goes on in the next line


def test_scenes_and_calibration(tmp_path: Path) -> None:
    result = run("scenes", "--count", "4", "--seed", "3", "--output", tmp_path / "world")
    assert result.exit_code == 0, result.stderr
    assert len(list((tmp_path / "world" / "images").iterdir())) == 4
    again = run("scenes", "--count", "4", "--output", tmp_path / "world")
    assert again.exit_code == 2
    profile = tmp_path / "profile.yaml"
    result = run("calibrate", "--images", tmp_path / "world" / "images", "--output", profile)
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load(profile.read_text())["values"]["sink_dimensions"]["value"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--method", "varr"], "did you mean 'var'"),
        (["generate", "--method", "var+varr"], "did you mean 'var'"),
        (["generate", "--method", "var+vhr", "--set", "head_scale=2"], "write var.head_scale"),
        (["generate", "--method", "var", "--set", "vhr.head_scale=2"], "is not in --method var"),
        (["generate", "--method", "var+var"], "--method var+var names a method twice"),
        (["generate", "--method", "fastv+divprune"], "one pruning method at a time"),
        (["generate", "--save-maps", "maps"], "--save-maps needs --method carve"),
        (["generate", "--method", "var", "--set", "moved=1"], "var has no parameter 'moved'"),
        (["generate", "--method", "var", "--set", "moved_fraction=2"], "it must be a number from 0 to 1"),
        (["generate", "--method", "var", "--set", "moved_fraction"], "is not KEY=VALUE"),
        (["generate", "--method", "var", "--set", "sink_dimensions=[1"], "the value is not readable"),
        (["generate", "--set", "moved_fraction=1"], "greedy has no parameters"),
        (["generate", "--compare"], "--compare needs a --method"),
        (["generate", "--image", "missing.png"], "no image file or folder 'missing.png'"),
        (["generate", "--image", "{text}"], "is not a readable image"),
        (["generate", "--image", "{empty}"], "no pictures in"),
        (["generate", "--model", "nonsense"], "neither an embedded model"),
        (["generate", "--model", "someone/some-model"], "check the name and the network"),
        (["generate", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["generate", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["generate", "--dtype", "float31"], "unknown dtype"),
        (["generate", "--device", "toaster"], "is not available here"),
        (["generate", "--device", "cuda:99"], "is not available here"),
        (["generate", "--wrong-option"], "--wrong-option"),
        (["generate", "--image", ""], "'' is no path"),
        (["generate", "--model", ""], "--model is ''"),
        (["generate", "--prompt", "a\udcffb"], "character 2 is not valid UTF-8"),
        (["generate", "--prompt", "an <image>"], "which stands for a picture"),
        (["generate", "--temperature", "nan"], "must be 0, or a number of 0.0001 or more"),
        (["generate", "--temperature", "inf"], "must be 0, or a number"),
        (["generate", "--seed", "99999999999999999999"], "--seed"),
        (["generate", "--device", "meta"], "holds no weights"),
        (["generate", "--dtype", "float8_e4m3fn"], "that no model computes in"),
        (["generate", "--method", "var", "--set", "moved_fraction=true"], "moved_fraction is True"),
        (["generate", "--method", "var", "--set", "moved_fraction=.nan"], "is no finite number"),
        (
            ["generate", "--method", "var", "--set", "first_layer=99"],
            "the layers of this model that can be edited go from 0",
        ),
        (["generate", "--method", "var", "--set", "name=x"], "var has no parameter 'name'"),
        (["generate", "--method", "gift", "--set", "enhanced_layers=3"], "it must hold a first and a last"),
        (["generate", "--method", "icd", "--set", "instruction_ids=[99999999]"], "the tokens of this model"),
        (
            ["generate", "--method", "var", *("--set", "var.moved_fraction=0", "--set", "moved_fraction=1")],
            "--set gives moved_fraction twice, 0 and 1",
        ),
        (["scenes", "--output", "{empty}"], "is there already"),
        (["scenes", "--output", ""], "'' is no path"),
        (["calibrate", "--images", "{empty}", "--output", "{empty}"], "is a folder; name a profile file"),
        (["wrong-command"], "wrong-command"),
        (["scenes", "--count", "0", "--output", "{empty}/new"], "--count"),
        (["calibrate", "--images", "{empty}"], "no pictures in"),
        (["calibrate", "--images", "{empty}", "--method", "nothing"], "unknown method"),
        (["calibrate", "--images", "{empty}", "--method", "adhh"], "has no annotated pictures"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    places = {"text": tmp_path / "text.png", "empty": tmp_path / "empty"}
    result = run(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not result.stdout


def test_json_is_strict_whatever_a_file_is_called(pictures: Path) -> None:
    os.rename(pictures / "0.png", os.fsencode(pictures) + b'/\xff"\n\x1b.png')
    (pictures / "line.png").write_bytes((pictures / "1.png").read_bytes()[:200])
    result = run(
        "generate", "--image", pictures, "--method", "var", "--set", "moved_fraction=1e-1", "--json", *SHORT
    )
    document = json.loads(result.stdout.encode(), parse_constant=pytest.fail)
    assert result.stdout.isascii()
    assert document["parameters"]["var"]["moved_fraction"] == 0.1
    names = [Path(each["image"]).name for each in document["results"]]
    assert names == ["1.png", "2.png", '\\xff"\\n\\x1b.png']
    assert [Path(each["image"]).name for each in document["failures"]] == ["line.png"]


def test_values_that_json_lacks() -> None:
    value = {"a": (float("nan"), float("-inf")), 1: torch.float16, "b": {"x"}, "\ud800": Path("c")}
    document = json.loads(json.dumps(strict(value), allow_nan=False, default=str))
    assert document == {"a": [None, None], "1": "torch.float16", "b": ["x"], "\\ud800": "c"}


def test_a_picture_that_the_model_cannot_take_leaves_the_others_their_answers(pictures: Path) -> None:
    Image.new("RGB", (5000, 1)).save(pictures / "line.png")
    result = run("generate", "--image", pictures, "--model", "tiny-qwen2.5-vl", "--json", *SHORT)
    document = json.loads(result.stdout)
    assert len(document["results"]) == 3
    assert [Path(each["image"]).name for each in document["failures"]] == ["line.png"]
    assert result.exit_code == 2
    assert "1 of 4 pictures" in result.stderr


@pytest.mark.slow
def test_as_a_script() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "cli.py", "methods"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "2503.03321" in result.stdout
