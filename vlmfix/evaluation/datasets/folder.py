"""Data folders: the files that they hold for each task, and what was read of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets import layouts
from vlmfix.evaluation.datasets.annotations import Instances, read_instances
from vlmfix.evaluation.files.readers import sha256_of
from vlmfix.settings import user_path

_TRAINING = ("train2014", "train2017")
_GIVEN = (*layouts.LOOKED_FOR, "ids", "synonyms")


@dataclass
class DataFolder:
    """The files of a data set, as far as they were found or given.

    Args:
        root: the folder that was searched; None if all was given.
        images: folders of pictures; the first that has a picture counts.
        instances: COCO instances.
        captions: COCO captions of the same images.
        pope: question files by data set and split.
        questions: VQA v2 questions.
        answers: VQA v2 annotations.
        ids: the image ids of the list that the protocol names.
        synonyms: the words of each object class for CHAIR; None: the words of the library.
        is_synthetic: whether the folder holds scenes of the synthetic world.
        used: what was read so far, by its role: file, SHA-256, rows.
    """

    root: Path | None = None
    images: tuple[Path, ...] = ()
    instances: Path | None = None
    captions: Path | None = None
    pope: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    questions: Path | None = None
    answers: Path | None = None
    ids: Path | None = None
    synonyms: Path | None = None
    is_synthetic: bool = False
    used: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def find(cls, root: str | Path | None = None, **given: str | Path) -> DataFolder:
        """Look what there is in `root`; what is given by name takes the place of what would be found.

        Args:
            root: a COCO root or the output of `vlmfix scenes`.
            given: paths of `images` (folder), `instances`, `captions`, `pope` (folder, or the file of one
                split), `questions`, `answers`, `ids`, `synonyms`.

        Raises:
            ValueError: unknown name, or neither a root nor a path.
            FileNotFoundError: something given does not exist.
            NotADirectoryError, IsADirectoryError: something given is a file and not a folder, or the reverse.
        """
        paths = {name: _given(name, path) for name, path in given.items()}
        base = None if root is None else _given("root", root)
        if base is None and not paths:
            raise ValueError(f"data names nothing; give a root, or {', '.join(_GIVEN)}")
        folder = cls(root=base, ids=paths.get("ids"), synonyms=paths.get("synonyms"))
        if base is not None:
            folder.instances = paths.get("instances") or layouts.find_instances(base)
            folder.captions = layouts.find_captions(base, folder.instances)
            folder.images = layouts.find_images(base, folder.instances)
            folder.questions = paths.get("questions") or layouts.find_questions(base)
            folder.answers = layouts.find_answers(base, folder.questions)
            folder.pope = {} if "pope" in paths else layouts.find_pope(base)
        for name in ("instances", "captions", "questions", "answers"):
            setattr(folder, name, paths.get(name) or getattr(folder, name))
        if "images" in paths:
            folder.images = (paths["images"],)
        if "pope" in paths:
            folder.pope = layouts.given_pope(paths["pope"])
        folder.is_synthetic = folder.instances is not None and layouts.is_synthetic(folder.instances)
        return folder

    def data_set(self, task: str, wanted: str = "") -> str:
        """Which of `layouts.DATA_SETS` the samples of a task come from.

        Args:
            task: "pope", "chair" or "vqa".
            wanted: the data set that the protocol names, if it does.

        Raises:
            ValueError: the folder is of another one, or has POPE files of several.
        """
        found = self._data_sets(task)
        if wanted and wanted not in found:
            raise ValueError(
                f"the protocol is for {wanted}, but {self._place} has {' and '.join(found)} for {task}; name "
                "the protocol without data set, or give other data"
            )
        if not wanted and len(found) > 1 and "coco" not in found:
            raise ValueError(
                f"{self._place} has POPE files of {' and '.join(found)}; name one with the protocol, such as "
                f"pope.llava/{found[0]}"
            )
        return wanted or ("coco" if "coco" in found else found[0])

    def question_files(self, data_set: str) -> Mapping[str, Path]:
        """The POPE files of a data set by split; none if the questions must be built from instances.

        Raises:
            FileNotFoundError: splits of a published data set are missing.
        """
        files = self.pope.get(data_set, {})
        missing = [split for split in layouts.SPLITS if split not in files]
        if files and missing and data_set != "custom":
            raise FileNotFoundError(
                f"{self._place} has no {data_set} POPE file for {', '.join(missing)}, and a mean over the "
                "other splits could be compared with nothing; add the file, or give data: {pope: FILE} for "
                "one split alone"
            )
        return files

    def require(self, name: str, task: str) -> Path:
        """The path of something that a task cannot do without.

        Raises:
            FileNotFoundError: it was neither found nor given.
        """
        path: Path | None = getattr(self, name)
        if not path:
            raise FileNotFoundError(self._missing(name, task))
        return path

    def find_file(self, task: str, *patterns: str) -> Path:
        """A file of a benchmark that lays its files out in its own way.

        Args:
            task: that needs it.
            patterns: of its path below the root; the first that a file fits counts.

        Raises:
            FileNotFoundError: there is none.
            ValueError: no root was given.
        """
        if self.root is None:
            raise ValueError(f"{task} looks for {patterns[0]} below a folder; give it with --data DIR")
        found = (path for pattern in patterns for path in sorted(self.root.glob(pattern)) if path.is_file())
        path = next(found, None)
        if path is None:
            raise FileNotFoundError(
                f"{self.root} has no {' or '.join(patterns)}, which {task} needs; check --data"
            )
        return path

    def image(self, name: str, task: str) -> Path:
        """The file of a picture; it need not exist. Under a name of 2014 it may be one of 2017.

        Raises:
            FileNotFoundError: there is no folder of pictures at all.
        """
        if not self.images:
            raise FileNotFoundError(self._missing("images", task))
        paths = [folder / each for each in layouts.picture_names(name) for folder in self.images]
        return next((path for path in paths if path.is_file()), paths[0])

    def read_instances(self, task: str) -> Instances:
        """The instances, which are read once and noted in `used` each time.

        Raises:
            FileNotFoundError: they were neither found nor given.
            ValueError: the file is no instances file.
        """
        path = self.require("instances", task)
        self.record("instances", path, len(self._instances.file_names))
        return self._instances

    def record(self, role: str, path: Path, rows: int) -> None:
        """Note in `used` what was read."""
        self.used[role] = {"file": str(path), "sha256": sha256_of(path), "rows": rows}

    @cached_property
    def _instances(self) -> Instances:
        return read_instances(self.require("instances", ""))

    def _data_sets(self, task: str) -> list[str]:
        if task == "pope" and self.pope:
            return list(self.pope)
        named = {"chair": self.instances, "vqa": self.questions}.get(task)
        if named is not None and layouts.is_official(named):
            return ["coco"]
        return ["synthetic" if self.is_synthetic else "custom"]

    @property
    def _place(self) -> str:
        return "the data given" if self.root is None else str(self.root)

    def _missing(self, name: str, task: str) -> str:
        looked = "" if self.root is None else f", looked for {layouts.LOOKED_FOR[name]}"
        what = {"pope": "question files"}.get(name, name)
        return f"{task} needs {what}, and {self._place} has none{looked}; give data: {{{name}: PATH}}"


def find_training(root: str | Path, method: str) -> DataFolder:
    """The annotated pictures of a folder, for a calibration: of several parts of COCO those that no benchmark
    asks about.

    Args:
        root: a COCO root, or the output of `vlmfix scenes`.
        method: that is calibrated, for messages.

    Raises:
        FileNotFoundError: there is no such folder, or it has no instances, or no pictures.
    """
    annotations = Path(root) / "annotations"
    training = [path for part in _TRAINING if (path := annotations / f"instances_{part}.json").is_file()]
    folder = DataFolder.find(root, **({"instances": training[0]} if training else {}))
    if folder.instances is None or not folder.images:
        raise FileNotFoundError(
            f"{str(root)!r} has no annotated pictures, which {method} needs to know what is there; give a "
            "folder with images/ and instances.json as 'vlmfix scenes' writes it, or a COCO root with "
            "annotations/instances_*.json"
        )
    return folder


def _given(name: str, path: Any) -> Path:
    if name != "root" and name not in _GIVEN:
        raise ValueError(f"data has no {name!r}; it has root, {', '.join(_GIVEN)}")
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(f"data: {name} is {path!r}; it must be a path")
    found = user_path(path)
    if not found.exists():
        raise FileNotFoundError(f"data: {name}: there is no {str(path)!r}; check the path")
    if name in ("root", "images") and not found.is_dir():
        raise NotADirectoryError(f"data: {name}: {str(path)!r} is a file; give a folder")
    if name not in ("root", "images", "pope") and found.is_dir():
        raise IsADirectoryError(f"data: {name}: {str(path)!r} is a folder; give a file")
    return found
