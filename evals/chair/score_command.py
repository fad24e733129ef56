"""A file of captions scored with CHAIR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.readers import (
    Record,
    examples,
    image_number,
    read_records,
    sha256_of,
    text_of,
)
from vlmfix.evaluation.tasks import lengths
from vlmfix.evaluation.tasks.ratios import object_errors

from . import scorer
from .ground_truth import count_images
from .scorer import (
    CaptionJudgement,
    GroundTruth,
    Score,
    Vocabulary,
)

IMAGE_KEYS = ("image_id", "image", "image_name", "file_name", "question_id", "id")
CAPTION_KEYS = (
    "caption",
    "answer",
    "response",
    "output",
    "prediction",
    "filtered_resps",
    "text",
)

# From so many captions on, ids that count them are told from ids of COCO, which are sparse.
_FEWEST_IDS = 20


@dataclass(frozen=True)
class Report:
    """Figures of one caption file.

    Args:
        vocabulary: with which captions were read.
        has_references: whether reference captions took part in the ground truth.
        files: paths with SHA-256.
        image_keys: under which the images stand in the records.
        counts: captions in the file, scored, and left out by reason.
        judgements: of the scored captions, in the order of their file.
        score: their figures.
    """

    vocabulary: Vocabulary
    has_references: bool
    files: Mapping[str, str]
    image_keys: Sequence[str]
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
        found = [f"{self.counts[key]} {text}" for key, text in told.items() if self.counts[key]]
        found.append(f"images by the key {' or '.join(map(repr, self.image_keys))}")
        if self.counts["unfinished"] > self.counts["scored"] / 2:
            found.append(
                f"{self.counts['unfinished']} of {self.counts['scored']} captions end within a sentence, so "
                "that CHAIR, recall and length are those of cut captions; see --drop-incomplete"
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
) -> Report:
    """Score a file of captions: a JSON array, JSON Lines, or an object with a list of them.

    Args:
        captions: file with an image and a caption in each record.
        instances: COCO instance files that have the images.
        references: COCO caption files.
        vocabulary: words and variant.
        allow_partial: leave out and count captions that are null, of unknown images, or second ones of
            an image, instead of refusing them.
        drop_incomplete: judge captions without an incomplete last sentence.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not what it should be, captions do not fit the images, or their ids are
            running numbers.
    """
    read = [(record, *_caption(record)) for record in read_records(captions)]
    image_keys = list(dict.fromkeys(_image_key(record) for record, _, _ in read))
    truth = GroundTruth.from_files(
        instances, references, vocabulary=vocabulary, image_ids={image_id for _, image_id, _ in read}
    )
    _check_ids(captions, image_keys, {image_id for _, image_id, _ in read}, truth)
    counts: Counter[str] = Counter(captions=len(read))
    kept: dict[int, str] = {}
    problems: dict[str, list[str]] = {"duplicates": [], "unknown": [], "null_captions": []}
    for record, image_id, text in read:
        if text is None:
            problems["null_captions"].append(record.where)
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
    files = {
        "captions": captions,
        **_numbered("instances", instances),
        **_numbered("coco_captions", references),
    }
    hashes = {f"{name}_sha256": sha256_of(path) for name, path in files.items()}
    named = {name: str(path) for name, path in files.items()} | hashes
    score = scorer.score(judgements)
    return Report(vocabulary, truth.has_captions, named, image_keys, counts, judgements, score)


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
        "image_keys": report.image_keys,
        "counts": report.counts,
        "scores": vars(report.score),
        "objects": {
            name: {"hallucinated": wrong, "mentions": all_} for name, (wrong, all_) in errors.items()
        },
        "captions": [asdict(each) for each in report.judgements],
        "notes": report.notes,
    }


def _image_key(record: Record) -> str:
    return next(key for key in IMAGE_KEYS if key in record)


def _check_ids(path: str | Path, keys: Sequence[str], ids: Collection[int], truth: GroundTruth) -> None:
    """Refuse ids that count the captions, where those of the images do not: some images have these numbers.

    Raises:
        ValueError: naming the key and the range.
    """
    if len(ids) < _FEWEST_IDS or truth.is_counted or not count_images(ids):
        return
    raise ValueError(
        f"{path}: the image ids under {' or '.join(map(repr, keys))} go from {min(ids)} to {max(ids)} for "
        f"{len(ids)} images, so that they count the captions, and the COCO files have other ids; give these, "
        "or the names of the pictures"
    )


def _caption(record: Record) -> tuple[int, str | None]:
    return image_number(record, IMAGE_KEYS), text_of(record, CAPTION_KEYS, "caption")


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
