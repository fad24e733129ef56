"""Pictures of a COCO folder whose captions can be judged, as a calibration takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from vlmfix.calibration.directions import CaptionPair
from vlmfix.calibration.heads import AnnotatedImage, ObjectWord
from vlmfix.evaluation.datasets.folder import find_training
from vlmfix.evaluation.sample import Sample
from vlmfix.inference.pictures import ImageLike

from .scorer import GroundTruth, judge
from .task import Chair
from .tokens import token_starts
from .vocabulary import Vocabulary


def annotated_images(root: str | Path, limit: int) -> list[AnnotatedImage]:
    """The first pictures of a folder, whose captions CHAIR judges by instances and reference captions.

    Args:
        root: a COCO root, where training images are preferred, or the output of `vlmfix scenes`.
        limit: how many at most.

    Raises:
        FileNotFoundError: there is no such folder, or it has no instances, or no picture of them.
        ValueError: an annotation file is broken, or names objects that CHAIR does not know.
    """
    paths, truth = _pictures(root, limit)
    return [annotated_image(path, image_id, truth) for image_id, path in paths.items()]


def _pictures(root: str | Path, limit: int) -> tuple[dict[int, Path], GroundTruth]:
    """The first pictures of a folder by id, and what is in them."""
    folder = find_training(root, "a calibration on captions")
    assert folder.instances is not None
    names = folder.read_instances("adhh").file_names
    paths = ((image_id, folder.image(name, "adhh")) for image_id, name in names.items())
    chosen = dict(islice(((image_id, path) for image_id, path in paths if path.is_file()), limit))
    if not chosen:
        raise FileNotFoundError(f"{str(root)!r} has none of the pictures of {folder.instances}; add them")
    truth = GroundTruth.from_files(
        [folder.instances],
        [] if folder.captions is None else [folder.captions],
        vocabulary=Vocabulary(variant="corrected"),
        image_ids=chosen,
    )
    return chosen, truth


def caption_pairs(root: str | Path, limit: int) -> list[CaptionPair]:
    """True and hallucinated captions of the first pictures of a folder that show one object or more.

    Hallucinated objects are those that are most often in pictures with the same objects, and not in this one.

    Args:
        root: see `annotated_images`.
        limit: how many at most.

    Raises:
        FileNotFoundError: as for `annotated_images`.
        ValueError: as for `annotated_images`; or no picture shows objects beside which others are missing.
    """
    paths, truth = _pictures(root, limit)
    together: Counter[tuple[str, str]] = Counter()
    for objects in truth.objects.values():
        together.update((one, other) for one in objects for other in objects)
    classes = sorted({one for one, _ in together})
    pairs = []
    for image_id, path in paths.items():
        present = sorted(truth.objects[image_id])
        missing = [each for each in classes if each not in present]
        likely = sorted(missing, key=lambda each: -sum(together[each, one] for one in present))
        if present and 2 * len(likely) >= len(present):
            pairs.append(CaptionPair.of_objects(path, present, likely))
    if not pairs:
        raise ValueError(
            f"the first pictures of {str(root)!r}, {len(paths)} of them, show {len(classes)} kinds of "
            "objects, too few for captions that name others; read more (--limit)"
        )
    return pairs


def annotated_image(image: ImageLike, image_id: int, truth: GroundTruth) -> AnnotatedImage:
    """A picture whose captions CHAIR judges.

    Args:
        image_id: of the picture in `truth`.
    """
    return AnnotatedImage(image, partial(_object_words, image_id=image_id, truth=truth))


def annotated_samples(task: Chair, samples: Sequence[Sample]) -> list[AnnotatedImage]:
    """Pictures of a task, whose captions are judged as the task does.

    Args:
        task: with data and protocol.
        samples: of the task.
    """
    truth = task.truth(task.protocol.scorer)
    return [
        annotated_image(sample.image, sample.meta["image_id"], truth)
        for sample in samples
        if sample.image is not None
    ]


def _object_words(caption: str, *, image_id: int, truth: GroundTruth) -> list[ObjectWord]:
    """The objects that a caption names, in order."""
    judged, starts = judge(caption, image_id, truth), token_starts(caption)
    return [ObjectWord(starts[each.index], each in judged.hallucinated) for each in judged.mentions]
