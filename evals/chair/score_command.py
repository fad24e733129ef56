"""A file of captions scored with CHAIR."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.answers import IMAGE_KEYS, Answer, Answers, Keys, read_answers
from vlmfix.evaluation.files.index import Index
from vlmfix.evaluation.files.readers import Record, examples, image_number, sha256_of
from vlmfix.evaluation.tasks import lengths
from vlmfix.evaluation.tasks.ratios import object_errors

from . import scorer
from .ground_truth import count_images
from .image_list import USUAL_IMAGES
from .scorer import (
    CaptionJudgement,
    GroundTruth,
    Score,
    Vocabulary,
)

# From so many captions on, ids that count them are told from ids of COCO, which are sparse.
_FEWEST_IDS = 20
# Mean words from which captions have paragraphs, as a rule.
_PARAGRAPHS = 60


@dataclass(frozen=True)
class Report:
    """Figures of one caption file.

    Args:
        vocabulary: with which captions were read.
        has_references: whether reference captions took part in the ground truth.
        files: paths with SHA-256.
        read: how the captions were read, in sentences.
        counts: captions in the file, scored, and left out by reason.
        judgements: of the scored captions, in the order of their file.
        score: their figures.
    """

    vocabulary: Vocabulary
    has_references: bool
    files: Mapping[str, str]
    read: Sequence[str]
    counts: Mapping[str, int]
    judgements: Sequence[CaptionJudgement]
    score: Score

    @property
    def notes(self) -> list[str]:
        """What a reader has to know beside the figures, in sentences."""
        told = {
            "repeated": "captions that stand in the file twice, taken once",
            "duplicates": "captions of an image that had another one, left out",
            "unknown": "captions of unknown images, left out",
            "null_captions": "null captions, left out",
            "shortened": "captions without their incomplete last sentence",
            "empty_captions": "empty captions, scored as captions without objects",
        }
        found = list(self.read)
        found += [f"{self.counts[key]} {text}" for key, text in told.items() if self.counts[key]]
        if self.counts["scored"] < USUAL_IMAGES:
            found.append(
                f"{self.counts['scored']} images: published figures are over {USUAL_IMAGES} or more, and "
                "those of fewer vary widely"
            )
        if self.counts["unfinished"] > self.counts["scored"] / 2:
            found.append(
                f"{self.counts['unfinished']} of {self.counts['scored']} captions end within a sentence, so "
                "that CHAIR, recall and length are those of cut captions; see --drop-incomplete"
            )
        long = self.score.mean_words > _PARAGRAPHS and self.counts["scored"] >= _FEWEST_IDS
        if long and not self.counts["with_blank_lines"]:
            found.append(
                "no caption has a blank line, so that a stop text may have cut them at the end of their "
                "first paragraph"
            )
        if not self.has_references:
            found.append(
                "ground truth without reference captions: figures differ from the official ones; "
                "give --coco-captions"
            )
        if not self.vocabulary.is_official:
            found.append(
                f"words from {self.vocabulary.source}, not the official list: figures differ from published "
                "ones; give it as --synonyms"
            )
        if self.score.undefined:
            found.append(f"zero denominator, shown as 0: {', '.join(self.score.undefined)}")
        return found


def score_file(
    captions: str | Path,
    instances: Sequence[str | Path],
    references: Sequence[str | Path] = (),
    *,
    vocabulary: Vocabulary,
    allow_partial: bool = False,
    drop_incomplete: bool = False,
    keys: Keys | None = None,
    index: str | Path | None = None,
) -> Report:
    """Score a file of captions in any of the forms of `read_answers`.

    Args:
        captions: file with an image and a caption in each record.
        instances: COCO instance files that have the images.
        references: COCO caption files.
        vocabulary: words and variant.
        allow_partial: leave out and count captions that are null, of unknown images, or second ones of
            an image, instead of refusing them.
        drop_incomplete: judge captions without an incomplete last sentence.
        keys: of the records.
        index: file from running numbers, by which the captions are named, to images.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not what it should be, captions do not fit the images, or their ids are
            running numbers.
    """
    given = read_answers(captions, keys, what="caption")
    images = None if index is None else Index(index, IMAGE_KEYS)
    key = None if keys is None else keys.id
    read = [(each.where, _image_id(each, images, key), each.text) for each in given]
    image_ids = {image_id for _, image_id, _ in read}
    truth = GroundTruth.from_files(instances, references, vocabulary=vocabulary, image_ids=image_ids)
    by = _image_keys(given) if key is None else [key]
    if index is None:
        _check_ids(captions, by, image_ids, truth)
    counts: Counter[str] = Counter(captions=len(read))
    kept: dict[int, str] = {}
    problems: dict[str, list[str]] = {"duplicates": [], "unknown": [], "null_captions": []}
    for where, image_id, text in read:
        if text is None:
            problems["null_captions"].append(where)
        elif kept.get(image_id) == text:
            counts["repeated"] += 1
        elif image_id in kept:
            problems["duplicates"].append(str(image_id))
        elif image_id not in truth.objects:
            problems["unknown"].append(str(image_id))
        else:
            kept[image_id] = text
    _refuse(captions, problems, allow_partial)
    shortened = kept
    if drop_incomplete:
        shortened = {key: lengths.drop_incomplete(text) for key, text in kept.items()}
    judgements = [scorer.judge(text, image_id, truth) for image_id, text in shortened.items()]
    if not judgements:
        raise ValueError(f"{captions}: no caption is of a known image; give the COCO files that have them")
    counts.update({name: len(found) for name, found in problems.items()})
    counts["scored"] = len(judgements)
    counts["shortened"] = sum(kept[key] != text for key, text in shortened.items())
    counts["unfinished"] = sum(not lengths.is_finished(text) for text in shortened.values())
    counts["empty_captions"] = sum(not text.strip() for text in shortened.values())
    counts["without_objects"] = sum(not each.mentions for each in judgements)
    counts["with_blank_lines"] = sum(bool(re.search(r"\n\s*\n", text)) for text in shortened.values())
    files = {
        "captions": captions,
        **({} if index is None else {"index": index}),
        **_numbered("instances", instances),
        **_numbered("coco_captions", references),
    }
    hashes = {f"{name}_sha256": sha256_of(path) for name, path in files.items()}
    named = {name: str(path) for name, path in files.items()} | hashes
    score = scorer.score(judgements)
    joined = " or ".join(by) if index is None else f"the numbers in {Path(index).name}"
    told = [given.reading(joined), *given.notes]
    return Report(vocabulary, truth.has_captions, named, told, counts, judgements, score)


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON document, with every caption."""
    vocabulary = report.vocabulary
    errors = object_errors(
        [
            (mention.category, mention not in each.hallucinated)
            for each in report.judgements
            for mention in each.mentions
        ]
    )
    return {
        "task": "chair",
        "variant": vocabulary.variant,
        "vocabulary": {
            "source": vocabulary.source,
            "sha256": vocabulary.sha256,
            "official": vocabulary.is_official,
            "classes": len(vocabulary.classes),
        },
        "files": report.files,
        "counts": report.counts,
        "scores": vars(report.score),
        "objects": {
            name: {"hallucinated": wrong, "mentions": all_} for name, (wrong, all_) in errors.items()
        },
        "captions": [asdict(each) for each in report.judgements],
        "notes": report.notes,
    }


def _image_keys(given: Answers) -> list[str]:
    """The keys under which the images stand."""
    ids = given.used.get("id", []) if any(each.image is None for each in given) else []
    return [*given.used.get("image", []), *ids]


def _check_ids(path: str | Path, keys: Sequence[str], ids: Collection[int], truth: GroundTruth) -> None:
    """Refuse ids that count the captions, where those of the images do not: some images have these numbers.

    Raises:
        ValueError: naming the key and the range.
    """
    if len(ids) < _FEWEST_IDS or truth.is_counted or not count_images(ids):
        return
    raise ValueError(
        f"{path}: the image ids under {' or '.join(map(repr, keys))} go from {min(ids)} to {max(ids)} for "
        f"{len(ids)} images, so that they count the captions, and the COCO files have other ids; say with "
        "--index FILE which image each number stands for"
    )


def _image_id(answer: Answer, index: Index | None, key: str | None = None) -> int:
    """The COCO id of a caption's image.

    Args:
        answer: with the caption.
        index: of running numbers; None: the file names the images themselves.
        key: of the image in the record, where it is not the usual one.
    """
    if index is not None:
        return image_number(index[answer], IMAGE_KEYS)
    value = answer.id if key is not None or answer.image is None else answer.image
    if value is None and answer.number is not None:
        raise ValueError(
            f"{answer.where}: no image id, and {answer.number} only counts; say with --index FILE which "
            "image each number stands for"
        )
    if value is None:  # there may be what is none, which is told
        return image_number(answer.record, IMAGE_KEYS)
    return image_number(Record({"image": value}, answer.where), ("image",))


def _refuse(path: str | Path, problems: Mapping[str, Sequence[str]], allow_partial: bool) -> None:
    told = {
        "duplicates": "second captions of an image",
        "unknown": "captions of images that the COCO files lack",
        "null_captions": "null captions",
    }
    found = [f"{len(ids)} {told[name]} ({examples(ids)})" for name, ids in problems.items() if ids]
    if found and not allow_partial:
        raise ValueError(
            f"{path}: {'; '.join(found)}; fix the file or pass --allow-partial to leave them out"
        )


def _numbered(name: str, paths: Sequence[str | Path]) -> dict[str, str | Path]:
    return {name if number == 1 else f"{name}_{number}": path for number, path in enumerate(paths, 1)}
