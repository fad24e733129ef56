"""Items of DASH-B as samples: from its lists, from synthetic scenes, or from the data set by name."""

from __future__ import annotations

import re
from pathlib import Path

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData, HubRow, hub_samples
from vlmfix.evaluation.datasets.synthetic.language import with_article
from vlmfix.evaluation.files.readers import shown
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol, Setting
from vlmfix.evaluation.tasks.yes_no import yes_or_no
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .lists import LABELS, read_lists
from .scenes import scene_items

_OBJECT, _WITH_ARTICLE = "{object}", "{a object}"

PROMPT = Setting(
    lambda value: isinstance(value, str) and (_OBJECT in value or _WITH_ARTICLE in value),
    f"a question with {_OBJECT}, or {_WITH_ARTICLE} for the object with its proper article",
    required=True,
)

_SIGNS = {label: sign for sign, label in LABELS.items()}


def dash_samples(folder: DataFolder, protocol: Protocol) -> list[Sample]:
    """The pictures of both lists, or of synthetic scenes, with the question about their object.

    Args:
        folder: with the lists of DASH-B, or of synthetic scenes.
        protocol: of the task dash_b.

    Returns:
        The samples in order of their ids, `dash_b/<neg or pos>/<source>/<object>/<file>`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken.
    """
    items = scene_items(folder) if folder.is_synthetic else read_lists(folder)
    return in_order(
        _sample(item.id, item.source, item.object, item.label, item.image, protocol) for item in items
    )


def dash_rows(data: HubData, protocol: Protocol, cache: Path) -> list[Sample]:
    """The rows of the data set, `dash_b/<neg or pos>/<group>/<object>/<id>`; see `hub_samples`.

    Raises:
        ValueError: beside those of `hub_samples`, a question does not name its object in DASH-B's words.
    """

    def sample(row: HubRow) -> Sample:
        asked = re.match(r"can you see an? (.+?) in this image\b", row.question, re.IGNORECASE)
        if asked is None:
            raise ValueError(
                f"{row.where}: the question is {shown(row.question)}; it must be DASH-B's, such as Can you "
                "see a cup in this image?"
            )
        label = yes_or_no(row.answer, row.where)
        id = f"dash_b/{_SIGNS[label]}/{row.group}/{asked[1]}/{row.id}"
        return _sample(id, row.group, asked[1], label, row.image, protocol)

    return hub_samples(data, sample, cache)


def _sample(id: str, source: str, name: str, label: Verdict, image: Path, protocol: Protocol) -> Sample:
    question = protocol.prompt.replace(_OBJECT, name).replace(_WITH_ARTICLE, with_article(name))
    # The pictures of an object were found by similarity: objects are what is independent.
    meta = {"stratum": source, "object": name, "question": question}
    return Sample(id, name, image, protocol.ask(question), label, meta)
