"""`vlmfix generate`: answers, comparisons, JSON, and pictures or weights that cannot be read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vlmfix
from vlmfix.cli.app import app
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
    assert f"{len(list(maps.iterdir()))} files in" in result.stdout


def test_maps_before_and_after_registers_are_saved(pictures: Path, tmp_path: Path) -> None:
    neurons = ("--method", "registers", "--set", "neurons=[[2, 5]]")
    result = run("generate", "--image", pictures / "0.png", *neurons, "--save-maps", tmp_path, *SHORT)
    assert result.exit_code == 0, result.stderr
    assert {"0001-0-attention.png", "0001-0-norms.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "2 files in" in result.stdout


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


def test_a_picture_that_the_model_cannot_take_leaves_the_others_their_answers(pictures: Path) -> None:
    Image.new("RGB", (5000, 1)).save(pictures / "line.png")
    result = run("generate", "--image", pictures, "--model", "tiny-qwen2.5-vl", "--json", *SHORT)
    document = json.loads(result.stdout)
    assert len(document["results"]) == 3
    assert [Path(each["image"]).name for each in document["failures"]] == ["line.png"]
    assert result.exit_code == 2
    assert "1 of 4 pictures" in result.stderr


def test_several_pictures_in_one_prompt(pictures: Path) -> None:
    """In the order of the options, after a system message."""
    paths = [pictures / "2.png", pictures / "0.png"]
    options = [each for path in paths for each in ("--image", path)]
    result = run(
        "generate", *options, "--together", "--system", "Be brief.", "--prompt", "And?", "--json", *SHORT
    )
    [found] = json.loads(result.stdout)["results"]
    shown = [{"type": "image", "path": path} for path in paths]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [*shown, {"type": "text", "text": "And?"}]},
    ]
    expected = vlmfix.generate(*vlmfix.load(), messages=messages, max_new_tokens=8)
    assert found == {"images": list(map(str, paths)), "answers": {"greedy": expected}}


def test_a_conversation_from_a_file(pictures: Path) -> None:
    """Its paths are relative to the file, wherever the command runs."""
    file = pictures / "chat.json"
    content = [{"type": "image", "path": "1.png"}, {"type": "text", "text": "Is there a dog?"}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "No"},
        {"role": "user", "content": "And a cat?"},
    ]
    file.write_text(json.dumps(messages))
    result = run("generate", "--messages", file, "--method", "vhr", "--compare", "--json", *SHORT)
    document = json.loads(result.stdout)
    assert document["prompt"] == "And a cat?"
    [found] = document["results"]
    content[0]["path"] = str(pictures / "1.png")
    assert found["messages"] == str(file)
    expected = vlmfix.generate(*vlmfix.load(), messages=messages, method="vhr", max_new_tokens=8)
    assert found["answers"]["vhr"] == expected
    assert set(found["answers"]) == {"greedy", "vhr"}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('{"role": "user"}', (), "messages is {'role': 'user'}; it must be a list"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', (), "item 1 of message 1 is"),
        ("[{", (), "not valid JSON"),
        ('[{"role": "user", "content": "Hi"}]', ("--prompt", "Hi"), "leave --prompt out"),
        ('[{"role": "user", "content": "Hi"}]', ("--together",), "leave --together out"),
        ('[{"role": "user", "content": [{"type": "image", "path": "no.png"}]}]', (), "no image file"),
    ],
)
def test_a_file_that_is_no_conversation(
    content: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "chat.json").write_text(content)
    result = run("generate", "--messages", tmp_path / "chat.json", *options, *SHORT)
    assert result.exit_code == 2
    [line] = result.stderr.strip().splitlines()
    assert message in line
    assert run("generate", "--together").exit_code == 2


def test_maps_of_an_encoder_that_merges_tokens_are_refused(tmp_path: Path) -> None:
    result = run("generate", "--method", "tome", "--save-maps", tmp_path / "maps")
    assert result.exit_code == 2
    said = "--save-maps shows all image tokens, and tome leaves out some; leave one of them out"
    assert said in result.stderr
    assert not (tmp_path / "maps").exists()
