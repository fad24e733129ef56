"""`vlmfix reproduce`: the list, and a trial of every table on synthetic scenes and the embedded model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPConfig, CLIPModel

from tests.support import jobs
from tests.support.tinycoco import name_of, pope_rows, write_root
from vlmfix.evaluation import reproduction
from vlmfix.evaluation.reproduction import Table, load_table, tables

CLIP = "openai/clip-vit-large-patch14-336"


@pytest.fixture(autouse=True)
def _loaded_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.load_once(loaded, monkeypatch)


@pytest.fixture
def _short_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Table.settings

    def short(table: Table, **given: Any) -> dict[str, Any]:
        protocol = {"protocol": "chair.tiny+max_new_tokens=6"} if table.task == "chair" else {}
        return settings(table, **given) | protocol

    monkeypatch.setattr(Table, "settings", short)


@pytest.fixture
def _small_clip(loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that name a CLIP of the embedded model's size."""
    model, processor = loaded
    clip, folder = tmp_path / "clip", tmp_path / "tables"
    vision = model.config.vision_config.to_dict()
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {
        "vocab_size": len(processor.tokenizer),
        "bos_token_id": processor.tokenizer.bos_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
        "pad_token_id": processor.tokenizer.pad_token_id,
    }
    CLIPModel(CLIPConfig(text_config=text | ids, vision_config=vision, projection_dim=16)).save_pretrained(
        clip
    )
    processor.tokenizer.save_pretrained(clip)
    shutil.copytree(reproduction._directory(), folder)
    for path in folder.glob("shield/*.yaml"):
        path.write_text(path.read_text().replace(f"clip: {CLIP}", f"clip: {clip}, steps: 2, noise_images: 2"))
    monkeypatch.setattr(reproduction, "_directory", lambda: folder)


def test_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmfix.cli.reproduce.out.width", 200, raising=False)
    result = jobs.cli("reproduce")
    assert result.exit_code == 0
    for name in tables():
        assert name in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("vhr/chair",), "vhr/chair needs data; give a COCO root with --data DIR, or try --data synthetic"),
        (("vhr/nocaps", "--data", "synthetic"), "no published table 'vhr/nocaps'"),
        (("vhr/chair", "--data", "nowhere"), "no data folder 'nowhere'"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in jobs.refused("reproduce", *arguments)


def trial(name: str, world: Path, output: Path, *options: object) -> Any:
    result = jobs.cli(
        "reproduce", name, "--data", world, "--model", "tiny-llava", "--output", output, *options
    )
    assert result.exit_code == 0, result.stderr
    return result


def test_a_trial(world: Path, tmp_path: Path) -> None:
    result = trial("vcd/pope-greedy", world, tmp_path / "out", "--limit", 30)
    assert "vcd/pope-greedy: published beside measured (not comparable)" in result.stdout
    for line in (
        "source: ustc-hyin/cd_rethink (arXiv 2504.10020)",
        "not published: max_new_tokens, scorer, seed, dtype",
        "deviation: The noise of each image is drawn by the library's own seed.",
        "not comparable: The model is tiny-llava, and the table is of llava-hf/llava-1.5-7b-hf.",
        "not comparable: The data are synthetic scenes, under the protocol pope.tiny/synthetic.",
        "not comparable: The samples are limited to 30, and the table is of all.",
    ):
        assert line in result.stdout.splitlines()
    content = jobs.read(tmp_path / "out" / "reproduction.json")
    assert content["comparable"] is False
    assert content["table"] == "vcd/pope-greedy"
    [task] = jobs.read(tmp_path / "out" / "metrics.json")["tasks"]
    measured = {
        (method["method"], metric["name"], metric["group"]): metric
        for method in task["methods"]
        for metric in method["metrics"]
    }
    table = load_table("vcd/pope-greedy")
    assert len(content["figures"]) == sum(len(row.figures) for row in table.rows)
    for line in content["figures"]:
        metric = measured[line["method"], line["published"]["metric"], line["published"]["group"]]
        assert line["measured"] == pytest.approx(100 * metric["value"])
        assert line["published_is"] is None


def test_a_model_by_the_name_of_its_folder(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "llava-1.5-7b-hf"
    folder.mkdir()
    monkeypatch.setattr("vlmfix.cli.jobs.load_model", lambda name, *_, **__: loaded)
    result = jobs.cli(
        "reproduce", "greedy/pope", "--data", world, "--model", folder, "--output", tmp_path / "out"
    )
    assert result.exit_code == 0, result.stderr
    said = f"deviation: The model is {folder}, which is taken for llava-hf/llava-1.5-7b-hf by its name."
    assert said in result.stdout.splitlines()
    assert "not comparable: The model" not in result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("_small_clip", "_short_captions")
@pytest.mark.parametrize("name", tables())
def test_every_table_can_be_tried(name: str, world: Path, tmp_path: Path) -> None:
    trial(name, world, tmp_path / "out", "--limit", 1)
    content = jobs.read(tmp_path / "out" / "reproduction.json")
    table = load_table(name)
    assert content["source"] == table.source
    assert content["deviations"] == list(table.deviations)
    assert len(content["figures"]) == sum(len(row.figures) for row in table.rows)
    [task] = jobs.read(tmp_path / "out" / "metrics.json")["tasks"]
    assert all(method["counts"]["answered"] for method in task["methods"])


def test_the_published_conditions(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On files that are called as the published ones, under the protocol of the table."""
    root, output = write_root(tmp_path / "coco"), tmp_path / "out"
    for path in root.glob("pope/coco/*.json"):
        rows = [row | {"image": name_of(id)} for row, id in zip(pope_rows(), (9, 42, 133) * 2, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "llava-1.5-7b-hf"
    folder.mkdir()
    monkeypatch.setattr("vlmfix.cli.jobs.load_model", lambda name, *_, **__: loaded)
    result = jobs.cli("reproduce", "vhr/pope", "--data", root, "--model", folder, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert "vhr/pope: published beside measured\n" in re.sub(" +\n", "\n", result.stdout)
    assert "not comparable" not in result.stdout
    content = jobs.read(output / "reproduction.json")
    assert content["comparable"] is True
    [task] = jobs.read(output / "metrics.json")["tasks"]
    assert task["protocol"] == "pope.llava/coco"
    for line in content["figures"]:
        low, high = line["low"], line["high"]
        value = line["published"]["low"]
        expected = "below" if value < low else "above" if value > high else "in"
        assert line["published_is"] == expected
