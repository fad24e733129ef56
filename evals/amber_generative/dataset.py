"""Pictures of which AMBER wants descriptions as samples, and its word lists."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from vlmfix.evaluation.datasets.amber import Item, picture, read_amber
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.synthetic.scenes import CATEGORIES, PARTNERS
from vlmfix.evaluation.files.readers import examples, field_of, read_json, read_text, shown
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol

from .language import Language, Lookup, spacy_language
from .scorer import Words

NAME = "amber_generative"

_SCENE_QUERY = "Describe the image."


def samples_of(folder: DataFolder, protocol: Protocol) -> list[Sample]:
    """The pictures that are to be described.

    Args:
        folder: with AMBER's files, see `read_amber`, or synthetic scenes.
        protocol: of the task amber_generative.

    Returns:
        The samples in order of their ids, `amber_generative/<id in five digits>`; target is what is there,
        and `meta["hallu"]` what is not, and might be expected.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken.
    """
    if folder.is_synthetic:
        return _scene_samples(folder, protocol)
    items = read_amber(folder, NAME, "generative")
    return in_order(_sample(item, folder, protocol) for item in items)


def words_of(folder: DataFolder) -> Words:
    """The word lists of the benchmark, or the categories of synthetic scenes.

    Raises:
        FileNotFoundError: `relation.json` or `safe_words.txt` is missing.
        ValueError: one is broken.
    """
    if folder.is_synthetic:
        return Words(dict.fromkeys(CATEGORIES, ()), ())
    path = folder.find_file(NAME, "**/relation.json")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is {shown(content)}; it must be an object from words to lists of words")
    associates = {word: _words(value, f"{path}, {word!r}") for word, value in content.items()}
    folder.record("relation", path, len(associates))
    listed = folder.find_file(NAME, "**/safe_words.txt")
    safe = frozenset(map(str.strip, read_text(listed).split("\n"))) - {""}
    folder.record("safe words", listed, len(safe))
    return Words(associates, safe)


def language_of(folder: DataFolder) -> Language:
    """What reads the descriptions: spaCy, or for synthetic scenes a lookup of their categories.

    Raises:
        ImportError: spaCy or its model is not installed.
    """
    if not folder.is_synthetic:
        return spacy_language()
    singulars = {form: each.name for each in CATEGORIES.values() for form in (each.name, each.plural)}
    return Lookup(singulars, "the categories of synthetic scenes")


def warn_of_unknown(samples: Sequence[Sample], words: Words) -> None:
    """Tell of annotated words without an entry in the word list, on which the official script fails."""
    listed = dict.fromkeys(word for sample in samples for word in (*sample.target, *sample.meta["hallu"]))
    unknown = [word for word in listed if word not in words.associates]
    if unknown:
        warnings.warn(
            f"{len(unknown)} annotated words are not in relation.json ({examples(unknown)}) and have no "
            "associates; the official script fails on them",
            stacklevel=3,
        )


def _sample(item: Item, folder: DataFolder, protocol: Protocol) -> Sample:
    truth, hallu = (
        _words(field_of(item.annotation, (key,), key), f"{item.annotation.where}, {key}")
        for key in ("truth", "hallu")
    )
    return Sample(
        id=f"{NAME}/{item.id:05}" if isinstance(item.id, int) else f"{NAME}/{item.id}",
        cluster=item.image,
        image=picture(folder, item.image),
        prompt=protocol.ask(item.query),
        target=truth,
        meta={"id": item.id, "hallu": hallu},
    )


def _scene_samples(folder: DataFolder, protocol: Protocol) -> list[Sample]:
    """Scenes with their categories, and the usual partners of these that are not there."""
    instances = folder.read_instances(NAME)
    found = []
    for image_id, name in instances.file_names.items():
        there = instances.objects[image_id]
        partners = dict.fromkeys(PARTNERS[each] for each in there if each in PARTNERS)
        found.append(
            Sample(
                id=f"{NAME}/{image_id:012}",
                cluster=name,
                image=folder.image(name, NAME),
                prompt=protocol.ask(_SCENE_QUERY),
                target=list(there),
                meta={"id": image_id, "hallu": [each for each in partners if each not in there]},
            )
        )
    return in_order(found)


def _words(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{where}: {shown(value)}; it must be a list of words")
    return value
