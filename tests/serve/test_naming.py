"""Names of models with methods and recipes, and the parameters that a client may give."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import vlmfix
from tests.support.paths import ROOT
from vlmfix.methods.registry import list_methods
from vlmfix.serve.errors import RequestError
from vlmfix.serve.naming import Catalogue

RECIPE = ROOT / "configs" / "recipes" / "tiny-llava.yaml"


@pytest.fixture(scope="module")
def catalogue(loaded: tuple[Any, Any]) -> Catalogue:
    return Catalogue(*loaded, "org/model")


def test_methods_and_parameters(catalogue: Catalogue) -> None:
    assert catalogue.plan("org/model").make_methods() == []
    assert catalogue.plan("org/model:greedy", {}).make_methods() == []
    one = catalogue.plan("org/model:var", {"moved_fraction": 0.9})
    assert one.make_methods() == [vlmfix.VAR(moved_fraction=0.9)]
    assert one.key == catalogue.plan("org/model:var", {"var": {"moved_fraction": 0.9}}).key
    assert one.key != catalogue.plan("org/model:var").key
    both = catalogue.plan("org/model:var+vcd", {"vcd": {"alpha": 0.5}})
    assert both.make_methods() == [vlmfix.VAR(), vlmfix.VCD(alpha=0.5)]


@pytest.mark.parametrize(
    "name",
    [
        *("", "model", "org/model2", "ORG/MODEL", "org/model:", "org/model:varr", "org/model:var+"),
        *("org/model:var+greedy", "org/model:auto+var", "org/model:x.yaml", "org/model:/etc/passwd"),
        "org/model:../tiny-llava.yaml",
    ],
)
def test_unknown_names_are_not_found(catalogue: Catalogue, name: str) -> None:
    with pytest.raises(RequestError) as caught:
        catalogue.plan(name)
    assert (caught.value.status_code, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("var", {"moved": 1}),
        ("var", {"moved_fraction": 2}),
        ("var", {"moved_fraction": math.nan}),
        ("var", {"moved_fraction": 10**400}),
        ("var", {"var": 1}),
        ("greedy", {"alpha": 1}),
        ("var+vcd", {"alpha": 1}),
        ("auto", {"pai": {"alpha": 1}}),
        ("vti", {"directions": "/etc/passwd"}),
        ("nullu", {"nullu": {"directions": "/etc/passwd"}}),
        ("dyvte", {"gate_weights": "secrets.safetensors"}),
        ("shield", {"clip": "somebody/model"}),
        ("mrfd", {"region_prompt": "{question.__class__}"}),
        ("baseline.random_directions", {"of": "vti", "settings": {"directions": "/etc/passwd"}}),
        ("var", {"gate": [[[[[[[[1]]]]]]]]}),
    ],
)
def test_parameters_that_do_not_fit_or_name_files(
    catalogue: Catalogue, name: str, parameters: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        catalogue.plan(f"org/model:{name}", parameters).make_methods()


def test_all_parameters_that_name_files_are_known() -> None:
    """A new one must be declared: a client could have the server read what it names."""
    declared = {"vti": ("directions",), "nullu": ("directions",), "dyvte": ("gate_weights",)}
    found = {name: cls.parameter_files for name, cls in list_methods().items() if cls.parameter_files}
    assert found == declared


def test_recipes_by_file_name(catalogue: Catalogue, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    shutil.copy(RECIPE, own)
    more = Catalogue(*loaded, "m", [own])
    assert {"m:mine.yaml", "m:tiny-llava.yaml", "m:auto"} <= set(more.ids)
    assert "org/model:mine.yaml" not in catalogue.ids
    assert "m:tiny-qwen2.5-vl.yaml" not in more.ids  # of another checkpoint
    assert more.plan("m:mine.yaml").decoding([], {})["num_beams"] == 5
    assert more.plan("m:mine.yaml").make_methods() == vlmfix.load_recipe(RECIPE).make_methods()
    with pytest.raises(FileNotFoundError, match="no recipe file"):
        Catalogue(*loaded, "m", [tmp_path / "no.yaml"])
    with pytest.raises(ValueError, match="for another checkpoint"):
        Catalogue(*loaded, "m", [RECIPE.with_name("tiny-qwen2.5-vl.yaml")])
    other = tmp_path / "other" / "mine.yaml"
    other.parent.mkdir()
    shutil.copy(RECIPE, other)
    with pytest.raises(ValueError, match=r"two recipe files are called 'mine.yaml'"):
        Catalogue(*loaded, "m", [own, other])
