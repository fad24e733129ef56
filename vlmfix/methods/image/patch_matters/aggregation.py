"""One text from several about a part of the picture, of what is reliable in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from vlmfix.methods.image.patch_matters import prompts
from vlmfix.methods.image.patch_matters.results import Region
from vlmfix.methods.image.patch_matters.statements import (
    grouped,
    read_groups,
    reliable,
    same_by_embedding,
    statements,
)
from vlmfix.methods.image.patch_matters.writer import Writer

Scorer = Callable[[Image.Image, Sequence[str]], Sequence[float]]

GROUPINGS = ("llm", "embedding")

# Temperatures and top-p of the paper's calls.
_GROUP, _FUSE, _TOP_P = 0.2, 0.6, 0.9
# From which sentences of two captions say the same, with grouping "embedding".
_SAME_COSINE = 0.9


@dataclass(frozen=True, eq=False)
class Job:
    """Texts about one part of the picture that are to become one.

    Args:
        id: see `Region`.
        box: in pixels.
        image: which contradictory statements are scored on.
        samples: the texts.
        images: which the unique statements of each text are scored on.
    """

    id: str
    box: tuple[int, int, int, int]
    image: Image.Image
    samples: Sequence[str]
    images: Sequence[Image.Image]


def aggregate(
    writer: Writer, jobs: Sequence[Job], scorer: Scorer, *, grouping: str, keep_score: float, limit: int
) -> list[Region]:
    """What is reliable in the texts of each job, as one text.

    Args:
        writer: of the texts.
        jobs: in order.
        scorer: of doubtful statements.
        grouping: one of `GROUPINGS`.
        keep_score: above which a doubtful statement is kept.
        limit: length of a text in tokens.

    Raises:
        ValueError: the scorer gives another number of scores.
    """
    said = [statements(job.samples) for job in jobs]
    replies: dict[int, str] = {}
    if grouping == "llm":
        asked = [place for place, own in enumerate(said) if len({each.sample for each in own}) > 1]
        calls = [(f"{jobs[place].id}, group", prompts.grouping(said[place])) for place in asked]
        replies = dict(zip(asked, writer.texts(calls, _GROUP, _TOP_P, limit), strict=True))
    regions = []
    for place, (job, own) in enumerate(zip(jobs, said, strict=True)):
        same, conflicts = read_groups(replies.get(place, ""), len(own))
        if grouping == "embedding":
            same = same_by_embedding(own, writer.embeddings([each.text for each in own]), _SAME_COSINE)
        groups = grouped(own, same, conflicts)
        doubtful = [(each.text, job.image) for group in groups.contradictory for each in group]
        doubtful += [(each.text, job.images[each.sample]) for each in groups.unique]
        scores = _scores(scorer, doubtful)
        kept = reliable(groups, scores, keep_score)
        regions.append(
            Region(
                id=job.id,
                box=job.box,
                image=job.image,
                samples=tuple(job.samples),
                reply=replies.get(place, ""),
                groups=groups,
                scores=scores,
                reliable=tuple(kept),
                text="",
            )
        )
    told = [region for region in regions if region.reliable]
    calls = [(f"{each.id}, fuse", prompts.fusing(each.samples, each.reliable)) for each in told]
    texts = writer.texts(calls, _FUSE, _TOP_P, limit)
    fused = {each.id: text or " ".join(each.reliable) for each, text in zip(told, texts, strict=True)}
    return [dataclasses.replace(each, text=fused.get(each.id, "")) for each in regions]


def _scores(scorer: Scorer, doubtful: Sequence[tuple[str, Image.Image]]) -> dict[str, float]:
    """The score of each sentence on its picture."""
    found: dict[str, float] = {}
    for image in {id(image): image for _, image in doubtful}.values():
        texts = [text for text, own in doubtful if own is image]
        scores = [float(each) for each in scorer(image, texts)]
        if len(scores) != len(texts):
            raise ValueError(
                f"the scorer gives {len(scores)} scores for {len(texts)} sentences; give one for each"
            )
        found |= dict(zip(texts, scores, strict=True))
    return found
