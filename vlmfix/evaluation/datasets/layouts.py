"""Places and names of files in a COCO root, of POPE and VQA v2, and in what `vlmfix scenes` writes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vlmfix.inference.pictures import IMAGE_SUFFIXES

DATA_SETS = ("coco", "aokvqa", "gqa", "synthetic", "custom")
"""Sources of questions; `custom` is all that the user brings or has built."""

SPLITS = ("random", "popular", "adversarial")
"""Splits of POPE, in the names of its files."""

PARTS = ("val2014", "val2017", "train2014", "train2017")
"""Parts of COCO; of several in one root the first is used."""

LOOKED_FOR = {
    "images": "a folder val2014/, val2017/, train2014/, train2017/ or images/, or pictures themselves",
    "instances": "instances.json or annotations/instances_*.json",
    "captions": "captions.json or annotations/captions_*.json, as the instances are called",
    "pope": "{coco,aokvqa,gqa}_pope_*.json, also in pope/, POPE/ and annotations/, or instances to "
    "build questions from",
    "questions": "questions.json or v2_OpenEnded_mscoco_*_questions.json, also in vqa/ and annotations/",
    "answers": "answers.json or v2_mscoco_*_annotations.json, as the questions are called",
}

_OF_2014 = re.compile(r"COCO_(?:train|val)2014_(?=\d{12}\.)")
_POPE = re.compile(rf"({'|'.join(DATA_SETS)})_pope_(?:seem_)?({'|'.join(SPLITS)})\.jsonl?")


def find_instances(root: Path) -> Path | None:
    """The instances file of a root."""
    paths = [root / "instances.json"]
    paths += [folder / f"instances_{part}.json" for part in PARTS for folder in (root / "annotations", root)]
    return _first([*paths, *sorted((root / "annotations").glob("instances_*.json"))])


def find_captions(root: Path, instances: Path | None) -> Path | None:
    """The captions of the same images."""
    if instances is None or "instances" not in instances.name:
        return None
    name = instances.name.replace("instances", "captions")
    return _first(folder / name for folder in (instances.parent, root / "annotations", root))


def find_images(root: Path, instances: Path | None) -> tuple[Path, ...]:
    """The folders of pictures, first the same part of COCO as the instances."""
    parts = sorted(PARTS, key=lambda part: instances is None or part not in instances.name)
    names = [*parts, *(f"images/{part}" for part in parts), "images"]
    folders = [root / name for name in names if (root / name).is_dir()]
    if any(child.suffix.lower() in IMAGE_SUFFIXES for child in root.iterdir()):
        folders.append(root)
    return tuple(folders)


def picture_names(name: str) -> list[str]:
    """What a picture may be called: COCO dropped the part of 2014 from its names in 2017."""
    return list(dict.fromkeys([name, _OF_2014.sub("", name)]))


def find_questions(root: Path) -> Path | None:
    """The questions of VQA v2, or of synthetic scenes."""
    names = [f"v2_OpenEnded_mscoco_{part}_questions.json" for part in ("val2014", "train2014")]
    return _first([root / "questions.json", *(root / folder / name for name in names for folder in _VQA)])


def find_answers(root: Path, questions: Path | None) -> Path | None:
    """The answers to the same questions."""
    if questions is None:
        return None
    name = questions.name.replace("OpenEnded_", "").replace("_questions", "_annotations")
    name = "answers.json" if questions.name == "questions.json" else name
    paths = [questions.parent / name, *(root / folder / name for folder in _VQA)]
    return _first(path for path in paths if path != questions)


def find_pope(root: Path) -> dict[str, dict[str, Path]]:
    """Question files of POPE by data set and split; of two for the same split the first."""
    files = _pope_files(root)
    for folder in (root / "pope", root / "POPE"):
        files += _pope_files(folder, "**/")
    return _by_split(files + _pope_files(root / "annotations"))


def given_pope(path: Path) -> dict[str, dict[str, Path]]:
    """Question files in a folder that the user names; a single file is a data set of its own.

    Raises:
        FileNotFoundError: no file in the folder is named like a question file of POPE.
    """
    if path.is_file():
        name = _POPE.fullmatch(path.name)
        return {"custom": {name[2] if name else path.stem: path}}
    found = _by_split(_pope_files(path, "**/"))
    if not found:
        raise FileNotFoundError(
            f"data: pope: {str(path)!r} has no file named like coco_pope_random.json; give the folder of "
            "such files, or one file of questions"
        )
    return found


def is_official(path: Path) -> bool:
    """Whether a file of instances or questions is called as COCO and VQA v2 call theirs."""
    parts = "|".join(PARTS)
    return bool(
        re.fullmatch(rf"instances_({parts})\.json|v2_OpenEnded_mscoco_({parts})_questions\.json", path.name)
    )


def is_synthetic(instances: Path) -> bool:
    """Whether the file says that it is of synthetic scenes; it says so at its very beginning."""
    with instances.open("rb") as file:
        return b'"description": "vlmfix synthetic scenes' in file.read(200)


_VQA = ("", "vqa", "annotations")


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _pope_files(folder: Path, below: str = "") -> list[Path]:
    return sorted(folder.glob(f"{below}*_pope_*.json*"))


def _by_split(files: Iterable[Path]) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for path in files:
        if name := _POPE.fullmatch(path.name):
            found.setdefault(name[1], {}).setdefault(name[2], path)
    return found
