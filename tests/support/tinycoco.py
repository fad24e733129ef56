"""A tiny data set in the formats of COCO, POPE and VQA v2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

OBJECTS = {
    9: ["person", "car", "bus"],
    25: ["car", "person", "car", "dog"],
    42: ["dog", "person", "cat"],
    74: ["dog"],
    133: [],
}
"""Category of each annotation, by image id."""

CATEGORIES = {1: "person", 3: "car", 6: "bus", 17: "cat", 18: "dog"}


def name_of(image_id: int) -> str:
    return f"COCO_val2014_{image_id:012d}.jpg"


def instances() -> dict[str, Any]:
    """The content of an instances file."""
    numbers = {name: number for number, name in CATEGORIES.items()}
    pairs = [(image_id, name) for image_id, names in OBJECTS.items() for name in names]
    return {
        "info": {"description": "made up"},
        "images": [{"id": image_id, "file_name": name_of(image_id)} for image_id in OBJECTS],
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": numbers[name], "segmentation": [[0, 0, 1, 1]]}
            for number, (image_id, name) in enumerate(pairs, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
    }


def captions() -> dict[str, Any]:
    """The content of a captions file."""
    return {
        "images": [{"id": image_id} for image_id in OBJECTS],
        "annotations": [
            {"id": number, "image_id": image_id, "caption": f"A {' and a '.join(names) or 'field'}."}
            for number, (image_id, names) in enumerate(OBJECTS.items(), 1)
        ],
    }


def vqa() -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of a file of questions and of their answers."""
    asked = [
        {"question_id": image_id * 1000 + number, "image_id": image_id, "question": question}
        for image_id in (42, 9)
        for number, question in enumerate(("What is it?", "How many are there?"))
    ]
    answered = [
        {
            "question_id": question["question_id"],
            "image_id": question["image_id"],
            "question_type": "what is",
            "answer_type": "other",
            "multiple_choice_answer": "dog",
            "answers": [{"answer": "dog", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
        }
        for question in asked
    ]
    return {"data_subtype": "val2014", "questions": asked}, {"annotations": answered}


def pope_rows(count: int = 6) -> list[dict[str, Any]]:
    """Questions about image 42 in the form of the official files."""
    objects = ("person", "car", "dog", "apple", "cat", "bus")[:count]
    return [
        {
            "question_id": number,
            "image": name_of(42),
            "text": f"Is there {'an' if name == 'apple' else 'a'} {name} in the image?",
            "label": "yes" if number % 2 else "no",
        }
        for number, name in enumerate(objects, 1)
    ]


Writer = Callable[[str, Any], Path]


def writer(folder: Path) -> Writer:
    """A function that writes a value as JSON, or a text as it is, under a path below a folder."""

    def write(name: str, content: Any) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def write_root(root: Path) -> Path:
    """A root in the layout of COCO with POPE and VQA v2 files; image 74 has no picture, 25 a broken one."""
    write = writer(root)
    write("annotations/instances_val2014.json", instances())
    write("annotations/captions_val2014.json", captions())
    questions, answers = vqa()
    write("vqa/v2_OpenEnded_mscoco_val2014_questions.json", questions)
    write("vqa/v2_mscoco_val2014_annotations.json", answers)
    for split in ("random", "popular", "adversarial"):
        lines = [json.dumps(row) for row in pope_rows()]
        write(f"pope/coco/coco_pope_{split}.json", "\n".join(lines))
    write(f"val2014/{name_of(25)}", "no picture")
    for image_id in (9, 42, 133):
        Image.new("RGB", (8, 8)).save(root / "val2014" / name_of(image_id))
    return root
