"""What Patch Matters found out about a picture: every region with all that led to its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vlmfix.methods.image.patch_matters.boxes import Detection
from vlmfix.methods.image.patch_matters.statements import Groups
from vlmfix.methods.multi_pass import MultiPassResult


@dataclass(frozen=True, eq=False, kw_only=True)
class Region:
    """A part of the picture, and what is said of it.

    Args:
        id: such as "quadrant 1" (they count in raster order), "semantic", "quadrants 1 and 2" or "whole".
        box: left, top, right and bottom in pixels.
        image: what the box shows.
        samples: its captions; of a pair and of the whole, the two texts that were merged.
        reply: of the language model that grouped the statements; "" where it was not asked.
        groups: the statements.
        scores: of the doubtful statements, by text.
        reliable: the statements that were kept.
        text: the description of them; "" without any.
    """

    id: str
    box: tuple[int, int, int, int]
    image: Image.Image = field(repr=False)
    samples: tuple[str, ...]
    reply: str
    groups: Groups
    scores: Mapping[str, float]
    reliable: tuple[str, ...]
    text: str

    def record(self) -> dict[str, Any]:
        """All but the picture, as JSON holds it."""
        own = {name: value for name, value in vars(self).items() if name != "image"}
        return own | {"groups": asdict(self.groups)}


@dataclass(frozen=True, eq=False, kw_only=True)
class DetailedCaption(MultiPassResult):
    """What Patch Matters found out about one prompt.

    Args:
        answer: to the prompt; plain decoding's where `divided` is False.
        short_caption: one sentence, which says what the semantic patch is looked for by.
        global_caption: of the whole picture, in answer to the prompt.
        detections: objects that the detector found; None: there is none.
        semantic_box: of the semantic patch, in pixels.
        semantic_source: "detector", "attention map" or "whole image", by which the box was found.
        regions: those with captions of their own.
        pairs: quadrants that overlap, merged.
        whole: the global caption with the semantic patch merged into it; None: there is no such patch.
        final_prompt: the last call of the language model.
        divided: whether the answer is of the parts.
        reason: why it is not, or why the last call was passed over; "" else.
    """

    short_caption: str = ""
    global_caption: str = ""
    detections: tuple[Detection, ...] | None = None
    semantic_box: tuple[int, int, int, int] | None = None
    semantic_source: str = ""
    regions: tuple[Region, ...] = ()
    pairs: tuple[Region, ...] = ()
    whole: Region | None = None
    final_prompt: str = ""
    divided: bool = False

    @property
    def acted(self) -> bool:
        return self.divided

    def record(self) -> dict[str, Any]:
        """All but the pictures, as JSON holds it: scores can be made again without the model."""
        own = {name: value for name, value in vars(self).items() if name != "final"}
        lists = {name: [each.record() for each in getattr(self, name)] for name in ("regions", "pairs")}
        return own | lists | {"whole": None if self.whole is None else self.whole.record()}

    def save(self, directory: str | Path, stem: str) -> list[Path]:
        """Write `<stem>-REGION.png`, the picture of each region, and `<stem>-regions.json`, the record.

        Returns:
            The files; none where the picture was not divided.
        """
        if not self.divided:
            return []
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for region in (*self.regions, *self.pairs):
            written.append(folder / f"{stem}-{region.id.replace(' ', '-')}.png")
            region.image.save(written[-1])
        written.append(folder / f"{stem}-regions.json")
        text = json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n"
        written[-1].write_text(text, encoding="utf-8")
        return written
