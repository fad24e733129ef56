"""Where data come from: scenes, folders, single files, data sets by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.datasets.sources import open_data, scene_count

COLUMNS = {"image": "i", "question": "q", "answer": "a"}


def test_synthetic_scenes_by_number_and_seed(tmp_path: Path) -> None:
    drawn: list[int] = []
    data = open_data({"synthetic": {"count": 3, "seed": 5}}, tmp_path, drawn.append)
    assert isinstance(data, DataFolder)
    assert data.is_synthetic
    assert len(data.read_instances("pope").file_names) == 3
    assert drawn == [1, 1, 1]
    again = open_data({"synthetic": {"count": 3, "seed": 5}}, tmp_path, drawn.append)
    assert again.root == data.root
    assert drawn == [1, 1, 1]
    other = open_data({"synthetic": {"count": 3, "seed": 6}}, tmp_path)
    assert other.root != data.root


def test_a_folder(world: Path, tmp_path: Path) -> None:
    for data in (str(world), {"root": str(world)}):
        found = open_data(data, tmp_path / "cache")
        assert isinstance(found, DataFolder)
        assert found.instances == world / "instances.json"
    assert not (tmp_path / "cache").exists()


def test_a_folder_in_the_home_of_the_user(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(world.parent))
    found = open_data(f"~/{world.name}", tmp_path)
    assert isinstance(found, DataFolder)
    assert found.root == world


def test_single_files(world: Path, tmp_path: Path) -> None:
    pope = tmp_path / "own.jsonl"
    row = {"question_id": 1, "image": "000000000001.png", "text": "Is there a dog?", "label": "no"}
    pope.write_text(json.dumps(row))
    found = open_data({"pope": str(pope), "images": str(world / "images")}, tmp_path)
    assert isinstance(found, DataFolder)
    assert found.root is None
    assert found.pope == {"custom": {"own": pope}}


def test_files_of_parquet_are_data_sets(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    file.write_bytes(b"")
    for path in (file, file.parent, tmp_path):
        found = open_data(str(path), tmp_path / "cache")
        assert isinstance(found, HubData)
        assert (found.name, found.split, found.columns) == (str(path), "test", {})


def test_a_data_set_by_name(tmp_path: Path) -> None:
    found = open_data({"dataset": "org/name", "columns": COLUMNS}, tmp_path)
    assert found == HubData("org/name", "test", COLUMNS)
    full = {"dataset": "org/name", "split": "val", "config": "small", "columns": COLUMNS}
    assert open_data(full, tmp_path) == HubData("org/name", "val", COLUMNS, "small")
    empty = {"dataset": "org/name", "split": None, "config": None, "columns": COLUMNS}
    assert open_data(empty, tmp_path) == HubData("org/name", "test", COLUMNS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("missing", "no data folder 'missing': give 'synthetic' or a folder; a data set by name needs"),
        ("", "data: root is ''; it must be a path"),
        ({}, "data names nothing; give a root, or images"),
        ({"root": None}, "data names nothing"),
        ({"root": 5}, "data: root is 5; it must be a path"),
        ({"root": "missing"}, "data: root: there is no 'missing'"),
        ({1: 2}, "data has no '1'; it has root"),
        ({"nope": "x"}, "data has no 'nope'"),
        ({"synthetic": {"count": 3}, "root": "x"}, "of synthetic scenes, set count, seed, split"),
        ({"synthetic": {"size": 3}}, "of synthetic scenes, set count, seed, split"),
        ({"synthetic": 3}, "of synthetic scenes, set count, seed, split"),
        ({"synthetic": None}, "of synthetic scenes, set count, seed, split"),
        ({"synthetic": {"count": "3"}}, "count of synthetic scenes is '3'; it must be a whole number"),
        ({"synthetic": {"count": 0}}, "count must be at least 1, got 0"),
        ({"synthetic": {"seed": -1}}, "seed"),
        ({"dataset": "x", "root": "y", "columns": COLUMNS}, "data has root; beside dataset it has columns"),
        ({"dataset": "x", "columns": ["i"]}, r"columns are \['i'\]; they must be a mapping"),
        ({"dataset": "x", "columns": 5}, "columns are 5"),
        ({"dataset": "x", "columns": {"image": "i"}}, "the columns of x lack question, answer"),
        ({"dataset": "x", "columns": COLUMNS | {"picture": "p"}}, "the columns of x do not know picture"),
        ({"dataset": "x", "columns": COLUMNS | {"id": 5}}, "the column id of x is 5; it must be a name"),
        ({"dataset": 5, "columns": COLUMNS}, "dataset is 5; it must be a name"),
        ({"dataset": None, "columns": COLUMNS}, "dataset is None; it must be a name"),
        ({"dataset": "", "columns": COLUMNS}, "dataset is ''; it must be a name"),
        ({"dataset": "x", "split": 5, "columns": COLUMNS}, "split is 5; it must be a name"),
        ({"dataset": "x", "config": ["a"], "columns": COLUMNS}, r"config is \['a'\]; it must be a name"),
    ],
    ids=str,
)
def test_wrong_data_are_named_in_one_line(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_data(data, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        ("synthetic", 500),
        ({"synthetic": {"count": 7}}, 7),
        ({"synthetic": {}}, 500),
        ({"synthetic": {"count": "7"}}, 0),
        ({"synthetic": None}, 0),
        ({"root": "x"}, 0),
        ("folder", 0),
    ],
    ids=str,
)
def test_scenes_to_be_drawn(data: Any, count: int) -> None:
    assert scene_count(data) == count
