"""HallusionBench: samples of files and of scenes, answers one by one, and a job."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vlmfix.evals.hallusionbench.task import HallusionBench

from tests.support import jobs
from tests.support.hallusionbench import ANSWERS, vector
from tests.support.outcomes import metrics_of
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.tasks.protocol_files import default_protocol, load_protocol
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS


def task(root: Path, protocol: str = "parse_all", **changes: Any) -> HallusionBench:
    chosen = load_protocol(f"hallusionbench.{protocol}/custom")
    return HallusionBench(DataFolder.find(root), chosen.with_(**changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "files" / "hallusion_bench" / "VD" / "chart").mkdir(parents=True)
    (tmp_path / "files" / "HallusionBench.json").write_text(json.dumps(vector()), encoding="utf-8")
    Image.new("RGB", (8, 8)).save(tmp_path / "files" / "hallusion_bench" / "VD" / "chart" / "0_1.png")
    return tmp_path


def test_samples_of_a_file(root: Path) -> None:
    own = task(root)
    with pytest.warns(UserWarning, match="6 items, and HallusionBench's file has 1,129"):
        samples = own.samples(Path("unused"))
    assert [sample.id for sample in samples][3:5] == [
        "hallusionbench/VD/chart/0/1/1",
        "hallusionbench/VS/chart/0/0/0",
    ]
    assert {sample.cluster for sample in samples} == {"VD/chart/0", "VS/chart/0"}
    assert samples[0].prompt == "Is it VD 0? Please answer yes or no."
    assert samples[0].image == root / "files" / "VD" / "chart" / "0_0.png"  # it may come later
    assert samples[2].image == root / "files" / "hallusion_bench" / "VD" / "chart" / "0_1.png"
    assert samples[4].image is None
    assert samples[0].meta["units"] == {"figure": 2, "question": 2, "level": 1}
    assert samples[4].meta["units"] == {"figure": 1, "question": 2, "level": 2}
    assert own.folder.used["hallusionbench"]["rows"] == 6


def test_the_rule_chooses_items(root: Path) -> None:
    with pytest.warns(UserWarning, match="not comparable"):
        samples = task(root, "parse_image_only").samples(Path("unused"))
    assert [sample.meta["visual_input"] for sample in samples] == ["1", "1", "2", "2", "1"]
    assert samples[-1].meta["units"] == {"figure": 1, "question": 1, "level": 1}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no HallusionBench.json .*which hallusionbench needs"):
        task(tmp_path).samples(Path("unused"))


@pytest.mark.parametrize(
    ("protocol", "place", "text", "points"),
    [
        ("parse_all", 0, "Yes.", 1.0),
        ("parse_all", 0, "No.", 0.0),
        ("parse_all", 0, "Perhaps.", 0.0),
        ("parse_all", 4, "Perhaps.", 1.0),
        ("parse_all", 4, "No.", 0.0),
        ("parse_image_only", 4, "Perhaps.", 0.0),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not comparable")
def test_judging_one_answer(protocol: str, place: int, text: str, points: float, root: Path) -> None:
    samples = task(root).samples(Path("unused"))
    assert task(root, protocol).judge(samples[place], text, truncated=False).value == points


@pytest.mark.filterwarnings("ignore:.*not comparable")
def test_figures_of_all_parsers(root: Path) -> None:
    own = task(root)
    samples = own.samples(Path("unused"))
    found = metrics_of(own, samples, [*ANSWERS[:5], None], [False] * 6)
    assert set(found.parsers) == set(PARSERS)
    assert (found.metrics[0].name, found.metrics[0].group, found.metrics[0].value) == ("aAcc", "", 0.8)
    names = {each.name for each in found.metrics if not each.group}
    assert names >= {
        "fAcc",
        "qAcc",
        "easy",
        "hard",
        "recall",
        "false-yes rate",
        "yes ratio",
        "unparsed",
        "words",
    }
    assert found.unparsed == 1
    assert found.parsers["official"][0].value == pytest.approx(4 / 5)


def test_scenes_and_scenes_edited(world: Path, tmp_path: Path) -> None:
    own = HallusionBench(DataFolder.find(world), default_protocol("hallusionbench", "synthetic"))
    samples = own.samples(tmp_path)
    assert own.samples(tmp_path) == samples
    assert Counter(sample.meta["visual_input"] for sample in samples) == {"0": 9, "1": 18, "2": 18}
    assert {sample.meta["category"] for sample in samples} == {"VD", "VS"}
    assert all(sample.image is None or sample.image.is_file() for sample in samples)
    assert len(list((tmp_path / "edited").glob("*.png"))) == 6
    by_unit: dict[tuple[str, str], dict[str, str]] = {}
    for sample in samples:
        group = by_unit.setdefault((sample.cluster, sample.meta["question"]), {})
        group[sample.meta["visual_input"]] = sample.target
    assert all(answers.get("0", "no") == "no" for answers in by_unit.values())
    flips = Counter((answers["1"], answers["2"]) for answers in by_unit.values())
    assert flips[("yes", "no")] + flips[("no", "yes")] == 6  # one question a scene is about the edit
    assert flips[("yes", "no")] > 0
    assert flips[("no", "yes")] > 0
    assert flips[("yes", "yes")] == flips[("no", "no")] == 6
    assert "hallusionbench" in own.folder.used


@pytest.mark.slow
def test_a_job(world: Path, tmp_path: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.load_once(loaded, monkeypatch)
    options = ("hallusionbench", "--data", world, "--method", "greedy", "--no-baselines")
    jobs.evaluate(tmp_path, *options)
    before, records = jobs.metrics(tmp_path), jobs.records(tmp_path)
    found = jobs.results(tmp_path)
    assert found["counts"]["answered"] == found["counts"]["samples"] == 45
    assert {each["name"] for each in found["metrics"]} >= {"aAcc", "fAcc", "qAcc", "easy", "hard"}
    assert not any(each["undefined"] for each in found["metrics"] if not each["group"])
    assert sum(record["image"] is None for record in records) == 9
    assert (tmp_path / "report.html").is_file()
    jobs.evaluate(tmp_path, *options)
    assert (jobs.metrics(tmp_path), jobs.records(tmp_path)) == (before, records)
