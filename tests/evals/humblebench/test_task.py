"""HumbleBench: samples of files and of scenes, the picture of noise, and a job."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from vlmfix.evals.humblebench.noise import noise_pixels
from vlmfix.evals.humblebench.task import HumbleBench

from tests.support import jobs
from tests.support.humblebench import DOG, VECTOR, rows
from tests.support.outcomes import metrics_of
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.plan import prepare
from vlmfix.evaluation.tasks.protocol_files import default_protocol, load_protocol

LETTER_ONLY = (
    "Please respond with only the letter of the correct choice (A, B, C, D, or E). Do not include the option "
    "text or any other explanation."
)


def task(data: DataFolder | HubData, variant: str = "humble", seed: int = 0) -> HumbleBench:
    return HumbleBench(data, load_protocol(f"humblebench.{variant}/custom"), seed)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    root = tmp_path / "data"
    root.mkdir()
    (root / "HumbleBench.json").write_text(json.dumps(rows()), encoding="utf-8")
    return DataFolder.find(root)


def test_samples_of_a_file(folder: DataFolder, tmp_path: Path) -> None:
    samples = task(folder).samples(tmp_path)
    assert [sample.id for sample in samples] == [f"humblebench/{number}" for number in range(8)]
    first = samples[0]
    assert first.prompt == f"{DOG}\n{LETTER_ONLY}"
    assert folder.root is not None
    assert (first.image, first.cluster) == (folder.root / "pictures" / "0.jpg", "pictures/0.jpg")
    assert first.target == "A"
    assert first.meta["options"]["B"] == "car"
    assert [sample.target for sample in samples] == [label for label, _ in VECTOR]
    assert folder.used["humblebench"]["rows"] == 8


def test_without_right_options(folder: DataFolder, tmp_path: Path) -> None:
    samples = task(folder, "humble_e").samples(tmp_path)
    assert {sample.target for sample in samples} == {"E"}
    assert samples[0].prompt == f"{DOG.replace('A. cat', '')}\n{LETTER_ONLY}".replace("\n\n", "\n")
    assert "A" not in samples[0].meta["options"]
    assert samples[2].prompt == f"{DOG}\n{LETTER_ONLY}"


def test_noise_is_drawn_from_the_seed_of_the_job(folder: DataFolder, tmp_path: Path) -> None:
    samples = task(folder, "humble_gn").samples(tmp_path)
    [path] = {sample.image for sample in samples}
    assert path is not None
    with Image.open(path) as picture:
        assert (picture.mode, picture.size) == ("L", (256, 256))
        assert np.array_equal(np.asarray(picture), noise_pixels(0))
    assert (
        0.9 < np.bincount(noise_pixels(0).ravel(), minlength=256).std() / 16 < 1.1
    )  # uniform over 256 levels
    assert [sample.cluster for sample in samples] == [
        sample.cluster for sample in task(folder).samples(tmp_path)
    ]
    before = folder.used["noise"]
    assert len(before["sha256"]) == 64
    assert task(folder, "humble_gn", seed=1).samples(tmp_path)[0].image != path
    assert folder.used["noise"]["seed"] == 1
    assert folder.used["noise"]["sha256"] != before["sha256"]
    settings = {
        "tasks": ["humblebench"],
        "data": str(folder.root),
        "protocol": "humblebench.humble_gn",
        "seed": 5,
    }
    [plan] = prepare(make_job({**settings, "output": str(tmp_path / "out")}))
    assert plan.used["noise"]["seed"] == 5


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no .*parquet, which humblebench needs"):
        task(DataFolder.find(tmp_path)).samples(tmp_path)


def picture(level: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "any.png"}


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    content = rows(image=[picture(number // 4) for number in range(8)])
    content[0]["type"] = "Weather"
    made = datasets.Dataset.from_list(content).cast_column("image", datasets.Image())
    parts = tmp_path / "copy" / "data"
    parts.mkdir(parents=True)
    for number, part in enumerate((made.select(range(5)), made.select(range(5, 8)))):
        part.to_parquet(parts / f"train-{number:05}-of-00002.parquet")
    folder = DataFolder.find(tmp_path / "copy")
    with pytest.warns(UserWarning, match=r"count as Object: Weather \(1\)"):
        samples = task(folder).samples(tmp_path / "built")
    assert [sample.target for sample in samples] == [label for label, _ in VECTOR]
    assert samples[0].meta["type"] == "Object"
    assert len({sample.cluster for sample in samples}) == 2
    assert all(sample.image is not None and sample.image.is_file() for sample in samples)
    assert folder.used["data set"]["rows"] == 8
    columns = {"image": "image", "question": "question", "answer": "label", "id": "question_id"}
    data = HubData(str(parts), "train", columns)
    with pytest.raises(ValueError, match='row 1: type is ""; it must be one of Object'):
        task(data).samples(tmp_path / "built")


def test_figures_of_both_parsers(folder: DataFolder, tmp_path: Path) -> None:
    own = task(folder)
    samples = own.samples(tmp_path)
    found = metrics_of(own, samples, [text for _, text in VECTOR], [False] * 8)
    assert list(found.parsers) == ["letter_first", "letter_set"]
    assert (found.metrics[0].name, found.metrics[0].value) == ("acc", 0.75)
    assert found.parsers["letter_set"][0].value == 0.75
    assert found.unparsed == 0
    assert own.judge(samples[0], "none", truncated=False).verdict == "unparsed"
    assert own.judge(samples[2], "None of the above.", truncated=False).value == 1


def test_scenes(world: Path, tmp_path: Path) -> None:
    folder = DataFolder.find(world)
    own = HumbleBench(folder, default_protocol("humblebench", "synthetic"))
    samples = own.samples(tmp_path)
    assert own.samples(tmp_path) == samples
    assert len(samples) == 12
    assert [sample.target for sample in samples].count("E") == 1  # every seventh
    objects = {
        name: folder.read_instances("").objects[id]
        for id, name in folder.read_instances("").file_names.items()
    }
    for sample in samples:
        there = {
            letter
            for letter, text in sample.meta["options"].items()
            if text.split(" ", 1)[1] in objects[sample.cluster]
        }
        assert there == ({sample.target} - {"E"})
        assert sample.image is not None
        assert sample.image.is_file()


@pytest.mark.slow
def test_a_job(world: Path, tmp_path: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.load_once(loaded, monkeypatch)
    options = ("humblebench", "--data", world, "--method", "greedy", "--limit", 4)
    options = (*options, "--protocol", "humblebench.humble_gn+max_new_tokens=4")
    jobs.evaluate(tmp_path, *options)
    before, records = jobs.metrics(tmp_path), jobs.records(tmp_path)
    found = jobs.results(tmp_path)
    assert found["counts"]["answered"] == 4
    assert found["metrics"][0]["name"] == "share_E"
    assert len({record["image"] for record in records}) == 1
    assert (tmp_path / "report.html").is_file()
    jobs.evaluate(tmp_path, *options)
    assert (jobs.metrics(tmp_path), jobs.records(tmp_path)) == (before, records)
