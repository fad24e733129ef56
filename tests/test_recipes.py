"""Recipes: files that say what they hold, checkpoints that they are for, and the tokens of their methods."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import GenerationConfig

import vlmfix
from tests.support import jobs
from tests.support.methods import NOT_IN_PROFILE
from vlmfix import recipes
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import render as render_prompt
from vlmfix.models.embedded import EMBEDDED
from vlmfix.models.profiles import user_directory
from vlmfix.recipe_files import FIELDS
from vlmfix.settings import dump_yaml

PROMPT = "Describe the image."


@pytest.fixture
def recipe(loaded: tuple[Any, Any]) -> vlmfix.Recipe:
    return made(loaded)


def made(loaded: tuple[Any, Any], *methods: vlmfix.Method, **changes: Any) -> vlmfix.Recipe:
    given: dict[str, Any] = {
        "name": "demo",
        "decoding": {"num_beams": 2},
        "task": "chair",
        "data": {"scenes": 100, "sha256": "5e1234567"},
        "evidence": [{"label": "demo", "metric": "CHAIRi", "value": np.float64(0.05), "interval": (-0.1, 0)}],
        "versions": {"vlmfix": "0.1.0"},
    }
    methods = methods or (vlmfix.ADHH(threshold=0.2), vlmfix.PAI())
    return vlmfix.Recipe.of(loaded[0], methods, **given | changes)


@pytest.fixture
def picture() -> Image.Image:
    return render(sample_scene(3, 1))


def test_files_hold_what_was_written(recipe: vlmfix.Recipe, tmp_path: Path) -> None:
    recipe.write(tmp_path / "recipe.yaml")
    read = vlmfix.load_recipe(tmp_path / "recipe.yaml")
    assert read == recipe
    assert read.make_methods() == [
        vlmfix.ADHH(threshold=0.2, heads=((1, 5), (3, 1))),
        vlmfix.PAI(layers=(0, 8)),
    ]
    assert read.data["sha256"] == "5e1234567"  # which a writer of YAML 1.1 would make a number
    content = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert tuple(content) == FIELDS
    assert content["methods"][0] == {"adhh": {"threshold": 0.2, "heads": [[1, 5], [3, 1]]}}
    assert content["evidence"] == [
        {"label": "demo", "metric": "CHAIRi", "value": 0.05, "interval": [-0.1, 0]}
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_it_needs_no_profile(loaded: tuple[Any, Any]) -> None:
    config, seen = loaded[0].config, 0
    for name, cls in vlmfix.list_methods().items():
        if name in NOT_IN_PROFILE:
            continue
        [method] = made(loaded, cls()).make_methods()
        alone = method.resolve(config, None)
        assert alone == cls().resolve(config, recipes.find_profile(loaded[0])), name
        seen += alone != cls()
    assert seen > 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": [{"adhh": {"threshold": -1}}]}, r"methods.adhh: threshold is -1; it must be a number"),
        ({"methods": [{"adhh": {"treshold": 1}}]}, r"methods.adhh: .*'treshold' \(did you mean 'threshold'"),
        ({"methods": [{"nothing": {}}]}, "unknown method 'nothing'"),
        ({"methods": ["pai"]}, r"methods\[0\] is 'pai'; it must be one name with a mapping"),
        ({"methods": [{"pai": 0.2}]}, r"methods\[0\] is {'pai': 0.2}; it must be one name with a mapping"),
        ({"methods": {"pai": {}}}, "methods is {'pai': {}}; it must be a list"),
        ({"methods": [{"pai": {}}, {"pai": {}}]}, "methods has pai, pai; each may come once"),
        ({"methods": [{"vcd": {}}, {"icd": {}}]}, "VCD defines the logits .*use one of them"),
        ({"methods": None}, "methods is None; every recipe has one"),
        ({"decoding": {"num_beams": 1}}, "decoding.num_beams is 1; it must be a whole number from 2 on"),
        ({"decoding": {"temperature": 1}}, "decoding.temperature is unknown; there are num_beams"),
        ({"decoding": 5}, "decoding is 5; it must be a mapping"),
        ({"name": " "}, "name is ' '; it must not be empty"),
        ({"name": "two\nlines"}, r"name is 'two\\nlines'; it must be a text of one line"),
        ({"match": {"model_type": "llava"}}, "match.weights is missing"),
        ({"match": {"model_type": 3, "weights": "x"}}, "match.model_type is 3; it must be a model type"),
        ({"evidence": {"value": 1}}, "evidence is {'value': 1}; it must be a list of mappings"),
        ({"data": {"drawn": "2026-01-01"}}, r"data.drawn is datetime.date\(2026, 1, 1\); it must be a text"),
        ({"method": []}, "method is unknown; there are name, match, methods"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_malformed_files_are_refused(
    recipe: vlmfix.Recipe, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_yaml(recipe.content | changes).replace("'2026-01-01'", "2026-01-01"))
    with pytest.raises(ValueError, match=words) as caught:
        vlmfix.Recipe.read(file)
    assert str(caught.value).startswith(f"{file} is not a recipe: ")


def test_other_weights_are_refused(recipe: vlmfix.Recipe, loaded: tuple[Any, Any]) -> None:
    other = copy.deepcopy(loaded[0])
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    recipe.check(loaded[0])
    words = (
        r"recipe 'demo' is for another checkpoint: its weights are sampled-sha256:\w+, those of this model"
    )
    with pytest.raises(ValueError, match=words):
        recipe(other)
    with pytest.raises(ValueError, match=words):
        vlmfix.generate(other, loaded[1], None, "Hello", recipe)
    with pytest.warns(UserWarning, match=words):
        block = recipe(other, force=True)
    with block as methods:
        assert [method.name for method in methods] == ["adhh", "pai"]
    shape = {**recipe.match, "text_config": {"hidden_size": 4096}}
    with pytest.raises(ValueError, match="this model, a llava, is of another type or shape"):
        dataclasses.replace(recipe, match=shape).check(loaded[0])


def test_it_is_its_methods_and_decoding(
    recipe: vlmfix.Recipe, loaded: tuple[Any, Any], picture: Image.Image
) -> None:
    model, processor = loaded
    methods = [vlmfix.ADHH(threshold=0.2), vlmfix.PAI()]
    by_hand = vlmfix.generate(model, processor, picture, PROMPT, methods, num_beams=2, max_new_tokens=20)
    assert by_hand != vlmfix.generate(model, processor, picture, PROMPT, methods, max_new_tokens=20)
    assert vlmfix.generate(model, processor, picture, PROMPT, recipe, max_new_tokens=20) == by_hand
    inputs = processor(images=picture, text=render_prompt(PROMPT, 1, processor), return_tensors="pt")
    with recipe(model, processor) as attached:
        output = model.generate(**inputs, **recipe.decoding, do_sample=False, max_new_tokens=20)
    new = output[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(new, skip_special_tokens=True)[0].strip() == by_hand
    assert all(method.edit_stats().steps for method in attached)


def test_arguments_that_contradict_it(recipe: vlmfix.Recipe, loaded: tuple[Any, Any]) -> None:
    for given in ({"num_beams": 3}, {"generation_config": GenerationConfig(num_beams=1)}):
        with pytest.raises(ValueError, match=r"num_beams is \d, and recipe 'demo' decodes with 2; leave it"):
            vlmfix.generate(*loaded, None, "Hello", recipe, **given)
    with pytest.raises(ValueError, match="a recipe stands alone, in no list"):
        vlmfix.generate(*loaded, None, "Hello", [recipe])  # type: ignore[call-overload]


def test_recipe_of_a_checkpoint(
    recipe: vlmfix.Recipe, loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "_shipped", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"no recipe is known .*make one with 'vlmfix tune --model MODEL'"):
        vlmfix.find_recipe(loaded[0])
    dataclasses.replace(recipe, name="shipped").write(tmp_path / "shipped.yaml")
    assert vlmfix.find_recipe(loaded[0]).name == "shipped"
    for age, name in enumerate(("newer", "older")):
        path = dataclasses.replace(recipe, name=name).install()
        assert path.parent == user_directory() / "recipes"
        os.utime(path, (1_700_000_000 - age,) * 2)
    dataclasses.replace(recipe, name="other", match={**recipe.match, "weights": "another"}).install()
    assert vlmfix.find_recipe(loaded[0]).name == "newer"
    assert vlmfix.load_recipe("older").name == "older"
    path = dataclasses.replace(recipe, name="yes or no", task="pope").install()  # the newest of all
    assert vlmfix.find_recipe(loaded[0]).name == "newer"
    assert vlmfix.find_recipe(loaded[0], ["vqa", "pope"]).name == "yes or no"
    assert vlmfix.find_recipe(loaded[0], ["vqa"]).name == "yes or no"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no recipe 'x'; .* there are: other, newer, older, shipped"):
        vlmfix.load_recipe("x")
    assert vlmfix.VAR().resolve(loaded[0].config, recipes.find_profile(loaded[0]))  # no profile is in the way


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_have_a_recipe(name: str) -> None:
    recipe = vlmfix.find_recipe(vlmfix.load(name)[0])
    assert recipe == vlmfix.load_recipe(f"{name} chair")
    assert {row["row"] for row in recipe.evidence} >= {"greedy", "adhh alone", "recipe"}


def test_generate_command(
    recipe: vlmfix.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Image.Image
) -> None:
    monkeypatch.setattr(recipes, "_shipped", lambda: tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    picture.save("picture.png")
    recipe.write("recipe.yaml")
    options = ("generate", "--image", "picture.png", "--max-new-tokens", 6, "--json")
    assert "no recipe is known for this checkpoint" in jobs.refused(*options, "--method", "auto")
    named = jobs.cli(*options, "--recipe", "recipe.yaml")
    assert named.exit_code == 0, named.stderr
    assert '"num_beams": 2' in named.stdout
    recipe.install()
    auto = jobs.cli(*options, "--method", "auto")
    assert auto.stdout == named.stdout
    assert "recipe: demo (" in auto.stderr
    assert jobs.cli(*options, "--recipe", "demo").stdout == named.stdout
    for more, words in (
        (("--recipe", "recipe.yaml", "--method", "var"), "--recipe recipe.yaml brings its methods"),
        (("--recipe", "recipe.yaml", "--set", "alpha=1"), "--set alpha=1 changes no recipe"),
        (("--method", "auto+var"), "auto+var: auto is the recipe of a checkpoint and no method"),
        (("--force",), "--force takes a recipe that is for other weights"),
        (("--model", "tiny-qwen2.5-vl", "--recipe", "recipe.yaml"), "is of another type or shape"),
    ):
        assert words in jobs.refused(*options, *more)
    forced = jobs.cli(*options, "--model", "tiny-qwen2.5-vl", "--recipe", "recipe.yaml", "--force")
    assert forced.exit_code == 0
    assert "it is used all the same" in forced.stderr


@pytest.mark.slow
def test_rows_of_a_job(
    recipe: vlmfix.Recipe,
    loaded: tuple[Any, Any],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs.load_once(loaded, monkeypatch)
    monkeypatch.setattr(recipes, "_shipped", lambda: tmp_path / "none")
    alone = dataclasses.replace(recipe, name="beams alone", methods=(), decoding={"num_beams": 3})
    for each, name in ((recipe, "demo.yaml"), (alone, "beams.yaml")):
        each.write(tmp_path / name)
    job = jobs.job_file(tmp_path / "job.yaml", recipes=[str(tmp_path / "beams.yaml")], methods=["pai"])
    short = ("--data", world, "--limit", 2, "--protocol", "chair.tiny+max_new_tokens=6")
    output = tmp_path / "out"
    jobs.evaluate(output, "chair", "--config", job, *short)
    [task] = jobs.read(output / "metrics.json")["tasks"]
    rows = {row["method"]: row for row in task["methods"]}
    assert {"greedy", "pai", "beams alone", "baseline.truncate(beams alone)"} <= rows.keys()
    assert rows["beams alone"]["baseline_of"] is None
    assert rows["beams alone"]["parameters"] == {"decoding": {"num_beams": 3}}
    manifests = {path.parent.name: jobs.read(path) for path in output.glob("chair/*/manifest.json")}
    [own] = [content for name, content in manifests.items() if name.startswith("num_beams=3-")]
    assert own["key"]["decoding"] == {"num_beams": 3}
    assert own["info"]["decoding"]["num_beams"] == 3
    assert [name for name, content in manifests.items() if "decoding" in content["key"]] == [
        name for name in manifests if name.startswith("num_beams=3-")
    ]
    before = jobs.metrics(output)
    (tmp_path / "beams.yaml").unlink()
    assert jobs.cli("report", output).exit_code == 0
    assert jobs.metrics(output) == before
    auto = ("chair", "--method", "auto", *short, "--output", tmp_path / "auto", "--no-baselines")
    assert "no recipe is known" in jobs.refused("eval", *auto)
    recipe.install()
    assert jobs.cli("eval", *auto).exit_code == 0
    assert [
        row["method"] for row in jobs.read(tmp_path / "auto" / "metrics.json")["tasks"][0]["methods"]
    ] == ["demo"]
    assert jobs.cli("report", tmp_path / "auto").exit_code == 0
    for changes, words in (
        ({"match": {**recipe.match, "weights": "another"}}, "recipe 'demo' is for another checkpoint"),
        ({"name": "greedy"}, "two rows are called 'greedy'; give the recipe another name"),
    ):
        dataclasses.replace(recipe, **changes).write(tmp_path / "wrong.yaml")
        wrong = ("chair", "--recipe", tmp_path / "wrong.yaml", *short, "--output", tmp_path / "wrong")
        assert words in jobs.refused("eval", *wrong)
    for more, words in (
        (("--method", "auto", "--recipe", "demo"), "auto stands alone, and there is recipe 'demo'"),
        (("--recipe", "demo", "--recipe", "demo"), "two rows are called 'demo'"),
        (("--recipe", "demo", "--method", "var", "--method", "var"), "method var is named twice"),
        (("--force",), "force takes recipes that are for other weights"),
    ):
        assert words in jobs.refused("eval", "chair", *more)
    sampled = ("pope", "--recipe", "demo", "--data", world, "--protocol", "pope.one-word-sample")
    assert "a recipe decodes with 2 beams, and pope.one-word-sample samples" in jobs.refused(
        "eval", *sampled, "--output", tmp_path / "sampled"
    )
