"""Pictures of ROPE as samples: one about all five objects, or one about each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol, Setting

from .entries import Entry, classes_by_source, read_part
from .scenes import read_scenes
from .slots import SLOTS

DEFAULT, SINGLE, TEACHER, STUDENT = SETTINGS = ("default", "single", "teacher_forcing", "student_forcing")
OFFICIAL_CLASSES = 50

_CLASSES, _NUMBER = "{classes}", "{number}"

PROMPT = Setting(
    lambda value: isinstance(value, str) and _CLASSES in value,
    f"a question with {_CLASSES}, and {_NUMBER} where one object is asked about",
    required=True,
)


def rope_samples(folder: DataFolder, protocol: Protocol, built: Path) -> list[Sample]:
    """The pictures of a part in the setting of a protocol.

    Args:
        folder: with the files of ROPE, or of synthetic scenes.
        protocol: of the task rope.
        built: folder that receives the marked pictures of scenes; those of ROPE are marked.

    Returns:
        The samples in order of their ids, `rope/<part>/<split>/<picture>`, and `/<object>` where one is asked
        about.

    Raises:
        FileNotFoundError: the part has no file.
        ValueError: a file is broken, or the setting needs the model's earlier answers.
    """
    setting, part = protocol.own["setting"], protocol.own["part"]
    if setting == STUDENT:
        raise ValueError(
            f"{STUDENT} asks with the model's own earlier answers, which vlmfix eval cannot do; use "
            f"rope.teacher-forcing, or score files of answers with --setting {STUDENT}"
        )
    if folder.is_synthetic:
        scenes, part = read_scenes(folder, built), "scenes"
    else:
        root = folder.require("root", "rope")
        scenes = {
            split: [(entry, _picture(root, entry.picture)) for entry in entries]
            for split, entries in read_part(folder, part).items()
        }
    classes = classes_by_source({split: [entry for entry, _ in each] for split, each in scenes.items()})
    for source, names in classes.items():
        if not folder.is_synthetic and len(names) != OFFICIAL_CLASSES:
            warnings.warn(
                f"{source} has {len(names)} classes in the files of {part} and {OFFICIAL_CLASSES} in ROPE: "
                "the prompts offer others than ROPE's; add the missing files",
                stacklevel=2,
            )
    return in_order(
        sample
        for split, each in scenes.items()
        for entry, path in each
        for sample in samples_of(entry, path, split, part, protocol, classes[entry.source])
    )


def samples_of(
    entry: Entry, path: Path | None, split: str, part: str, protocol: Protocol, classes: Sequence[str]
) -> Iterator[Sample]:
    """The samples about one picture.

    Args:
        entry: the picture and its objects.
        path: of the marked picture; None where nobody looks at it.
        split: of ROPE.
        part: "validation", "train" or "scenes".
        protocol: whose setting tells how many there are.
        classes: that the prompt offers.
    """
    setting = protocol.own["setting"]
    id = f"rope/{part}/{split}/{entry.name}"
    prompt = protocol.prompt.replace(_CLASSES, ", ".join(classes))
    meta = {"split": split, "picture": entry.name, "setting": setting}
    if setting == DEFAULT:
        yield Sample(id, entry.picture, path, prompt, list(entry.classes), {**meta, "slots": [*range(SLOTS)]})
        return
    for slot, name in enumerate(entry.classes):
        asked = prompt.replace(_NUMBER, str(slot + 1))
        if setting in (TEACHER, STUDENT):
            before = [f"obj{number}: {each}, " for number, each in enumerate(entry.classes[:slot], 1)]
            asked = f"{asked} {''.join(before)}obj{slot + 1}:"
        yield Sample(f"{id}/{slot + 1}", entry.picture, path, asked, [name], {**meta, "slots": [slot]})


def _picture(root: Path, name: str) -> Path:
    """The marked picture; the official code looks for png wherever the file says jpg."""
    paths = [root / name, root / name.replace("jpg", "png")]
    return next((path for path in paths if path.is_file()), paths[1])
