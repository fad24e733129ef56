"""Scenes written as a COCO data set, with open questions and ten answers each in the form of VQA v2."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmfix.evaluation.datasets.synthetic.language import (
    NUMBER_WORDS,
    Question,
    caption,
    questions,
)
from vlmfix.evaluation.datasets.synthetic.rendering import render
from vlmfix.evaluation.datasets.synthetic.scenes import (
    CATEGORIES,
    COLORS,
    SIZE,
    SceneObject,
    Split,
    sample_scene,
)
from vlmfix.evaluation.files.readers import read_json

CAPTIONS_PER_SCENE = 5
ANSWERS_PER_QUESTION = 10
ANNOTATOR_ERROR = 0.06
FILES = ("instances.json", "captions.json", "questions.json", "answers.json")


def write_coco(
    directory: str | Path,
    *,
    count: int,
    seed: int,
    split: Split = "test",
    sizes: Sequence[tuple[int, int]] = (SIZE,),
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Draw scenes 0 to `count` - 1 of the world `seed` and write them as a COCO data set.

    The folder receives `images/*.png`, `instances.json` and `captions.json` (COCO), `questions.json` and
    `answers.json` (VQA v2). Image ids are scene numbers plus 1.

    Args:
        directory: folder to write, made if missing; it must not hold a data set yet.
        count: number of scenes, at least 1.
        seed: world seed, 0 or more.
        split: see `sample_scene`.
        sizes: image sizes (width, height) in pixels, used in turn.
        progress: called with the number of scenes just written.

    Returns:
        The folder.

    Raises:
        ValueError: for `count` below 1 or arguments `sample_scene` refuses.
        FileExistsError: if the folder already holds a data set.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}: say how many scenes to draw")
    folder = Path(directory)
    for name in FILES:
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder} already holds a data set ({name}): choose another folder or remove it"
            )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    answered: list[dict[str, Any]] = []
    for index in range(count):
        scene = sample_scene(seed, index, split=split, size=sizes[index % len(sizes)])
        image_id = index + 1
        file_name = f"{image_id:012d}.png"
        render(scene).save(folder / "images" / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": scene.width, "height": scene.height})
        for sample in scene.objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_annotation(sample)})
        rng = np.random.default_rng([seed, index, 4])
        for _ in range(CAPTIONS_PER_SCENE):
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": caption(scene, rng)})
        for number, question in enumerate(questions(scene, rng)):
            question_id = image_id * 1000 + number
            asked.append({"image_id": image_id, "question_id": question_id, "question": question.text})
            answered.append({"image_id": image_id, "question_id": question_id, **_answers(question, rng)})
        if progress is not None:
            progress(1)
    info = {"description": f"vlmfix synthetic scenes, seed {seed}, split {split}", "version": "1"}
    categories = [
        {"id": c.coco_id, "name": c.name, "supercategory": c.supercategory} for c in CATEGORIES.values()
    ]
    common = {"info": info, "licenses": [], "images": images}
    contents: tuple[dict[str, Any], ...] = (
        {**common, "annotations": annotations, "categories": categories},
        {**common, "annotations": captions},
        {"info": info, "data_subtype": split, "task_type": "Open-Ended", "questions": asked},
        {"info": info, "data_subtype": split, "annotations": answered},
    )
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def read_scenes(path: str | Path) -> dict[str, tuple[SceneObject, ...]]:
    """The objects in each picture of an instances file that `write_coco` wrote, by the name of the picture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    content = read_json(path, drop=("segmentation",))
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        objects: dict[str, list[SceneObject]] = {name: [] for name in files.values()}
        for each in content["annotations"]:
            item = SceneObject(
                names[each["category_id"]],
                each["color"],
                tuple(each["bbox"]),
                each["opacity"],
                each["visibility"],
            )
            objects[files[each["image_id"]]].append(item)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not as 'vlmfix scenes' writes it ({type(error).__name__}: {error}); write it again"
        ) from error
    return {name: tuple(items) for name, items in objects.items()}


def _annotation(sample: SceneObject) -> dict[str, Any]:
    """COCO fields of an object; the segmentation is the twelve-sided outline of an ellipse in its box."""
    x, y, width, height = sample.box
    outline: list[float] = []
    for corner in range(12):
        angle = 2 * math.pi * corner / 12
        outline += [
            round(x + width / 2 * (1 + math.cos(angle)), 2),
            round(y + height / 2 * (1 + math.sin(angle)), 2),
        ]
    return {
        "category_id": CATEGORIES[sample.category].coco_id,
        "bbox": [x, y, width, height],
        "area": round(0.75 * width * height * sample.visibility, 2),
        "segmentation": [outline],
        "iscrowd": 0,
        "color": sample.color,
        "opacity": sample.opacity,
        "visibility": sample.visibility,
    }


def _answers(question: Question, rng: np.random.Generator) -> dict[str, Any]:
    """VQA v2 fields of a question: ten annotators, of whom a few err or write a number as a word."""
    answers = []
    for annotator in range(ANSWERS_PER_QUESTION):
        wrong = rng.random() < ANNOTATOR_ERROR
        answer = _mistake(question, rng) if wrong else question.answer
        if question.answer_type == "number" and rng.random() < 0.1:
            answer = NUMBER_WORDS[int(answer)]
        confidence = "maybe" if wrong or rng.random() < 0.1 else "yes"
        answers.append({"answer_id": annotator + 1, "answer": answer, "answer_confidence": confidence})
    return {
        "question_type": question.question_type,
        "answer_type": question.answer_type,
        "multiple_choice_answer": question.answer,
        "answers": answers,
    }


def _mistake(question: Question, rng: np.random.Generator) -> str:
    if question.answer_type == "yes/no":
        return "no" if question.answer == "yes" else "yes"
    if question.answer_type == "number":
        return str(max(1, int(question.answer) + (1 if rng.random() < 0.5 else -1)))
    others = [color for color in COLORS if color != question.answer]
    return others[int(rng.integers(len(others)))]
