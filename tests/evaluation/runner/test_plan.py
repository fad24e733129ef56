"""What a job asks, before any model is loaded."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

from tests.support.benchmarks import SHAPES, write_task
from tests.support.tinycoco import write_root
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.plan import prepare


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("return in_order(", "return print(", r"Dogs.samples gives no list of Sample but null"),
        ("return in_order(", "return len([1, 2]) or list(", r"Dogs.samples gives no list of Sample but 2"),
        (
            'else "no"',
            'else "left"',
            "sample dogs/0000.* of dogs has the target 'left'; that of a yes/no question must be yes or no",
        ),
    ],
)
def test_samples_of_a_benchmark_that_cannot_be_asked(
    before: str, after: str, message: str, world: Path, tmp_path: Path
) -> None:
    write_task(tmp_path / "mine", "dogs", SHAPES.replace(before, after))
    settings = {"tasks": ["dogs"], "tasks_from": [str(tmp_path / "mine")], "data": str(world)}
    with pytest.raises(ValueError, match=message):
        prepare(make_job({**settings, "output": str(tmp_path / "out")}))


def settings(data: Path, output: Path, *tasks: str) -> dict[str, object]:
    return {"tasks": list(tasks), "data": str(data), "output": str(output)}


def test_missing_pictures_are_told_before_a_model_is_loaded(world: Path, tmp_path: Path) -> None:
    data = shutil.copytree(world, tmp_path / "data")
    job = make_job(settings(data, tmp_path / "out", "pope"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [whole] = prepare(job)
    pictures = list(dict.fromkeys(sample.image for sample in whole.samples if sample.image))
    count, first = len(pictures), pictures[0].name
    pictures[0].unlink()
    with pytest.warns(
        UserWarning, match=rf"1 of {count} pictures of pope are missing \({first}\); their samples"
    ):
        [plan] = prepare(job)
    assert plan.samples == whole.samples
    for picture in pictures[1:]:
        picture.unlink()
    named = ", ".join(picture.name for picture in pictures)
    with pytest.raises(
        FileNotFoundError, match=rf"none of the {count} pictures of pope is in .*images \({named}\)"
    ):
        prepare(job)


def test_many_missing_pictures_are_named_in_part(world: Path, tmp_path: Path) -> None:
    data = shutil.copytree(world, tmp_path / "data")
    scenes = {"tasks": ["chair"], "data": {"root": str(data)}, "output": str(tmp_path / "out")}
    instances = data / "instances.json"
    names = [f"{number:012d}.png" for number in range(1000, 1012)]
    changed = json.loads(instances.read_text())
    changed["images"] += [{"id": number, "file_name": name} for number, name in enumerate(names, 1000)]
    instances.write_text(json.dumps(changed))
    captions = json.loads((data / "captions.json").read_text())
    captions["annotations"] += [
        {"id": number, "image_id": number, "caption": "A field."} for number in range(1000, 1012)
    ]
    (data / "captions.json").write_text(json.dumps(captions))
    with pytest.warns(
        UserWarning, match=rf"12 of 18 pictures of chair are missing \({', '.join(names[:10])}, \.\.\."
    ):
        prepare(make_job(scenes))


def test_a_task_without_data_may_be_left_out(tmp_path: Path) -> None:
    data = write_root(tmp_path / "coco")
    (data / "annotations" / "captions_val2014.json").unlink()
    job = make_job(settings(data, tmp_path / "out", "chair", "vqa") | {"protocol": "chair.tiny"})
    with pytest.raises(FileNotFoundError, match="chair needs captions"):
        prepare(job)
    told: list[str] = []
    assert [plan.task.name for plan in prepare(job, left_out=told.append)] == ["vqa"]
    assert len(told) == 1
    assert told[0].startswith("chair is left out: chair needs captions")
    (data / "vqa" / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(FileNotFoundError, match="vqa needs answers"):  # nothing is left
        prepare(job, left_out=told.append)
