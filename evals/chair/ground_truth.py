"""Content of COCO images: their annotated objects, and those that their reference captions name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.readers import examples, read_json, shown

from .vocabulary import Vocabulary


@dataclass(frozen=True)
class GroundTruth:
    """The classes of each image.

    Args:
        vocabulary: with which reference captions were read; captions to be judged are read with it, too.
        objects: for each known image its classes, maybe none.
        has_captions: whether reference captions took part, without which figures are not the official ones.
        is_counted: whether the ids of all images of the files count them, see `count_images`.
    """

    vocabulary: Vocabulary
    objects: Mapping[int, frozenset[str]]
    has_captions: bool
    is_counted: bool

    @classmethod
    def from_coco(
        cls,
        instances: Iterable[Any],
        captions: Iterable[Any] = (),
        *,
        vocabulary: Vocabulary,
        image_ids: Collection[int] | None = None,
    ) -> GroundTruth:
        """Unite the contents of COCO files.

        Args:
            instances: of `instances_*.json`: `images`, `annotations`, `categories`; crowds count.
            captions: of `captions_*.json`: `images`, `annotations`.
            vocabulary: finds the classes of categories and captions.
            image_ids: the images of interest, to save time; all without it.

        Raises:
            ValueError: if something is missing, or a category is in no class of the vocabulary.
        """
        collected = _Collected(vocabulary, image_ids)
        for number, content in enumerate(instances, 1):
            collected.add_instances(content, f"instances {number}")
        for number, content in enumerate(captions, 1):
            collected.add_captions(content, f"captions {number}")
        return collected.truth()

    @classmethod
    def from_files(
        cls,
        instances: Iterable[str | Path],
        captions: Iterable[str | Path] = (),
        *,
        vocabulary: Vocabulary,
        image_ids: Collection[int] | None = None,
    ) -> GroundTruth:
        """As `from_coco`, from files.

        Raises:
            OSError: if a file cannot be read.
            ValueError: as for `from_coco`, and if a file is not JSON.
        """
        collected = _Collected(vocabulary, image_ids)
        for path in instances:
            # outlines are most of these files, and nothing here needs them
            collected.add_instances(read_json(path, drop=("segmentation",)), str(path))
        for path in captions:
            collected.add_captions(read_json(path), str(path))
        return collected.truth()


class _Collected:
    def __init__(self, vocabulary: Vocabulary, image_ids: Collection[int] | None) -> None:
        self.vocabulary = vocabulary
        self.wanted = None if image_ids is None else frozenset(image_ids)
        self.objects: dict[int, set[str]] = {}
        self.has_captions = False
        self.ids: set[int] = set()

    def truth(self) -> GroundTruth:
        objects = {image_id: frozenset(names) for image_id, names in self.objects.items()}
        return GroundTruth(self.vocabulary, objects, self.has_captions, count_images(self.ids))

    def add_instances(self, content: Any, where: str) -> None:
        names = {
            _whole(category.get("id"), "category id", where): str(category.get("name"))
            for category in _objects_in(content, "categories", where)
        }
        for annotation, classes in self._annotations(content, "category_id", where):
            number = _whole(annotation["category_id"], "category_id", where)
            if number not in names:
                raise ValueError(
                    f"{where}: an annotation has the category_id {number}, which 'categories' lacks;"
                    " add it there"
                )
            category = self.vocabulary.class_of(names[number])
            if category is None:
                raise ValueError(
                    f"{where}: the vocabulary has no class for the category {names[number]!r}; "
                    "add it to the file of --synonyms"
                )
            classes.add(category)

    def add_captions(self, content: Any, where: str) -> None:
        self.has_captions = True
        for annotation, names in self._annotations(content, "caption", where):
            caption = annotation["caption"]
            if not isinstance(caption, str):
                raise ValueError(f"{where}: the caption {shown(caption)} is no text; write one")
            names.update(mention.category for mention in self.vocabulary.mentions(caption))

    def _annotations(
        self, content: Any, key: str, where: str
    ) -> Iterable[tuple[Mapping[str, Any], set[str]]]:
        """The annotations of wanted images, each with the set that takes the classes of its image."""
        for image in _objects_in(content, "images", where, required=False):
            self._names(image.get("id"), where)
        for annotation in _objects_in(content, "annotations", where):
            if key not in annotation:
                kind = "objects (instances)" if key == "category_id" else "captions"
                raise ValueError(
                    f"{where}: an annotation has no {key!r}, found {examples(map(repr, annotation), 6)}; "
                    f"give a COCO file of {kind}"
                )
            names = self._names(annotation.get("image_id"), where)
            if names is not None:
                yield annotation, names

    def _names(self, value: Any, where: str) -> set[str] | None:
        image_id = _whole(value, "image id", where)
        self.ids.add(image_id)
        if self.wanted is not None and image_id not in self.wanted:
            return None
        return self.objects.setdefault(image_id, set())


def count_images(ids: Collection[int]) -> bool:
    """Whether ids count the images: consecutive, or so dense that no choice of COCO's has them."""
    return bool(ids) and (max(ids) < 2 * len(ids) or max(ids) - min(ids) < len(ids))


def _whole(value: Any, what: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: the {what} {shown(value)} is no whole number, as in COCO")
    return value


def _objects_in(content: Any, key: str, where: str, *, required: bool = True) -> Iterable[Mapping[str, Any]]:
    """The list of objects under `key` of a COCO file."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: {shown(content)} is no object; a COCO file is one, with {key!r} in it")
    if key not in content and not required:
        return []
    samples = content.get(key)
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        found = examples(map(repr, content), 6) or "none"
        raise ValueError(
            f"{where}: no list of objects under {key!r}, found the keys {found}; give a COCO file"
        )
    return samples
