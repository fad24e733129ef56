"""The key of a run holds all that changes an answer, and nothing that does not."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmfix
from tests.support.methods import NOT_IN_PROFILE
from vlmfix.evaluation.files.hashing import digest, plain
from vlmfix.evaluation.runner import run_key
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.models.directions import write_directions
from vlmfix.models.profiles import find_profile

DATA = {"pope coco random": {"file": "/here/random.json", "sha256": "ab", "rows": 3000}}


def key(**changes: Any) -> dict[str, Any]:
    settings = {
        "task": "pope",
        "data": DATA,
        "protocol": load_protocol("pope.llava/coco"),
        "model": {"id": "tiny-llava", "revision": "abc", "dtype": "float32"},
        "methods": [{"name": "var", "parameters": {"moved_fraction": 0.4}}],
        "seed": 0,
    }
    return run_key.run_key(**(settings | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "vqa"},
        {"data": {}},
        {"data": {"pope coco random": {"file": "/here/random.json", "sha256": "cd", "rows": 3000}}},
        {"data": {"pope coco popular": DATA["pope coco random"]}},
        {"protocol": load_protocol("pope.llava/gqa")},
        {"protocol": load_protocol("pope.one-word/coco")},
        {"protocol": load_protocol("pope.llava/coco").with_(max_new_tokens=8)},
        {"protocol": load_protocol("pope.llava/coco").with_(temperature=0.5)},
        {"protocol": load_protocol("pope.llava/coco").with_(parser="strict")},
        {"model": {"id": "tiny-llava", "revision": "abd", "dtype": "float32"}},
        {"model": {"id": "tiny-llava", "revision": "abc", "dtype": "bfloat16"}},
        {"methods": []},
        {"methods": [{"name": "var", "parameters": {"moved_fraction": 0.6}}]},
        {"methods": [{"name": "vhr", "parameters": {}}, {"name": "var", "parameters": {}}]},
        {"seed": 1},
    ],
    ids=str,
)
def test_the_key_changes_with_what_changes_answers(changes: dict[str, Any]) -> None:
    assert digest(key(**changes)) != digest(key())


def test_the_order_of_methods_matters() -> None:
    one, other = ({"name": name, "parameters": {}} for name in ("var", "vhr"))
    assert digest(key(methods=[one, other])) != digest(key(methods=[other, one]))


def test_the_version_of_the_library_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(key())
    monkeypatch.setattr(vlmfix, "__version__", "99")
    assert digest(key()) != before


def test_where_data_lie_is_not_in_the_key() -> None:
    moved = copy.deepcopy(DATA)
    moved["pope coco random"]["file"] = "/elsewhere/random.json"
    assert key(data=moved) == key()


def test_what_a_protocol_imitates_is_not_in_the_key() -> None:
    assert "mirrors" not in key()["protocol"]
    assert key()["protocol"]["id"] == "pope.llava/coco"


def test_deviations_that_come_to_the_same_are_told_apart() -> None:
    """A named protocol whose values were changed is another protocol, whatever they are now."""
    deviating = load_protocol("pope.llava/coco").with_(max_new_tokens=8)
    assert key(protocol=deviating)["protocol"]["replaced"] == {"max_new_tokens": 16}


def test_the_part_about_data_and_protocol() -> None:
    part = run_key.key_of_data("pope", DATA, load_protocol("pope.llava/coco"))
    assert part == {name: key()[name] for name in ("task", "protocol")}


def test_the_model_is_known_to_its_weights(loaded: tuple[Any, Any]) -> None:
    about = run_key.model_identity(*loaded, "tiny-llava")
    assert about["id"] == "tiny-llava"
    assert about["revision"].startswith("sha256:")
    assert about["class"] == "LlavaForConditionalGeneration"
    assert about["dtype"] == "float32"
    assert about["attention"] == {"text": "sdpa", "vision": "sdpa"}
    assert about["quantization"] is None
    assert len(about["chat_template"]) == 64
    assert about["processor"]["settings"]["size"]
    assert json.loads(json.dumps(about)) == about
    digest(about)


@pytest.mark.parametrize("change", ["dtype", "attention", "template", "processor", "generation"])
def test_the_model_is_another_one_when_it_is_loaded_otherwise(change: str, loaded: tuple[Any, Any]) -> None:
    options = {"dtype": {"dtype": "bfloat16"}, "attention": {"attn_implementation": "eager"}}
    model, processor = vlmfix.load(**options.get(change, {}))
    if change == "template":
        processor.chat_template = "{{ 'USER: ' }}"
    elif change == "processor":
        processor.image_processor.do_resize = False
    elif change == "generation":
        model.generation_config.repetition_penalty = 1.5
    plain = run_key.model_identity(*loaded, "tiny-llava")
    assert digest(run_key.model_identity(model, processor, "tiny-llava")) != digest(plain)
    assert digest(run_key.model_identity(*loaded, "tiny-llava")) == digest(plain)


def checkpoint(folder: Path, **contents: str) -> Path:
    """A folder with files of a checkpoint, `weights_safetensors="..."` and so on."""
    folder.mkdir()
    for name, content in contents.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(content)
    return folder


def test_fingerprints_of_folders(tmp_path: Path) -> None:
    contents = {"model_safetensors": "weights", "config_json": "{}", "tokenizer_model": "pieces"}
    first = run_key.fingerprint(checkpoint(tmp_path / "a", **contents))
    assert first == run_key.fingerprint(checkpoint(tmp_path / "b", **contents, picture_png="no matter"))
    others = [contents | {name: "other"} for name in contents]
    others += [contents | {"chat_template_jinja": "x"}, dict(list(contents.items())[1:])]
    others.append({"other_safetensors": "weights", "config_json": "{}", "tokenizer_model": "pieces"})
    found = {
        run_key.fingerprint(checkpoint(tmp_path / str(number), **each)) for number, each in enumerate(others)
    }
    assert len(found | {first}) == len(others) + 1
    assert run_key.fingerprint(tmp_path / "missing") is None


def test_large_checkpoints_are_read_in_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_WHOLE_BYTES": 1000, "_PLACES": 3, "_PLACE_BYTES": 10}.items():
        monkeypatch.setattr(run_key, name, value)
    content = "x" * 2000
    first = run_key.fingerprint(checkpoint(tmp_path / "a", model_safetensors=content, config_json="{}"))
    assert first.startswith("sampled-sha256:")
    changed = {
        "beginning": f"y{content[1:]}",
        "middle": f"{content[:1000]}y{content[1001:]}",
        "end": f"{content[:-1]}y",
        "length": f"{content}x",
    }
    found = {first}
    for name, each in changed.items():
        found.add(run_key.fingerprint(checkpoint(tmp_path / name, model_safetensors=each, config_json="{}")))
    found.add(run_key.fingerprint(checkpoint(tmp_path / "c", model_safetensors=content, config_json="[]")))
    assert len(found) == 6


def test_methods_are_known_with_what_the_profile_says(loaded: tuple[Any, Any]) -> None:
    found = run_key.method_identity(vlmfix.VAR(), loaded[0])
    assert found["name"] == "var"
    assert found["parameters"]["sink_dimensions"]  # left open by the user, from the checkpoint's profile
    assert set(found["parameters"]) == set(vlmfix.VAR().parameters)
    assert json.loads(json.dumps(found)) == found
    other = run_key.method_identity(vlmfix.VAR(moved_fraction=0.6), loaded[0])
    assert digest(other) != digest(found)


def test_files_of_methods_are_known_by_their_content(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model = loaded[0]
    shipped = run_key.method_identity(vlmfix.Nullu(), model)
    file = vlmfix.Nullu().resolve(model.config, find_profile(model)).directions
    copied = shutil.copy(str(file), tmp_path / "copied")
    assert run_key.method_identity(vlmfix.Nullu(directions=str(copied)), model) == shipped
    write_directions(tmp_path / "copied", "nullu", model.config, {"subspaces": torch.ones(8, 4, 192)})
    assert run_key.method_identity(vlmfix.Nullu(directions=str(copied)), model) != shipped
    assert run_key.method_identity(vlmfix.Nullu(rank=0, directions="none"), model)["parameters"]["rank"] == 0


def test_a_method_that_does_nothing_needs_no_profile(loaded: tuple[Any, Any]) -> None:
    identity_parameters = vlmfix.VAR(moved_fraction=0)
    assert run_key.method_identity(identity_parameters, loaded[0])["parameters"]["moved_fraction"] == 0


@pytest.mark.parametrize("name", sorted(vlmfix.list_methods()))
def test_every_method_can_be_written_down(name: str, loaded: tuple[Any, Any]) -> None:
    method = vlmfix.make_method(name, **NOT_IN_PROFILE.get(name, {}))
    found = run_key.method_identity(method, loaded[0])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_environment_is_written_down(loaded: tuple[Any, Any]) -> None:
    found = run_key.environment(loaded[0])
    assert found["device"] == "cpu"
    assert {"python", "torch", "transformers", "tokenizers", "numpy", "pillow"} < set(found)
    assert all(isinstance(value, str) for value in found.values())


def test_values_become_json() -> None:
    assert plain({"a": (1, 2), "b": {3, 1}, "c": Path("x"), 4: None, "d": len}) == {
        "a": [1, 2],
        "b": [1, 3],
        "c": "x",
        "4": None,
        "d": "builtins.len",
    }
    with pytest.raises(ValueError, match="JSON compliant"):
        plain({"a": float("nan")})


def test_settings_of_the_checkpoint_that_do_not_apply_are_named(loaded: tuple[Any, Any]) -> None:
    assert run_key.model_identity(*loaded, "tiny-llava")["generation_config_set_aside"] == {}
    model, processor = vlmfix.load()
    model.generation_config.update(num_beams=4, top_k=1, do_sample=True)
    about = run_key.model_identity(model, processor, "tiny-llava")
    assert about["generation_config_set_aside"] == {"num_beams": 4, "top_k": 1, "do_sample": True}
