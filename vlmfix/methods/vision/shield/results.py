"""What SHIELD found out about one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vlmfix.methods.image.carve.crop import heat_map
from vlmfix.methods.multi_pass import MultiPassResult


@dataclass(frozen=True, eq=False, kw_only=True)
class ShieldedPicture:
    """What was done to one picture.

    Args:
        original: itself.
        caption: what the model said of it alone, up to the last full stop that fits into CLIP; "" without
            one, or where no part needs it.
        words: what of the caption was put into the prompt after the picture.
        gains: of the patches, in pixels of `original`, `(height, width)`; None: no patch was amplified.
        attacked: what the model reads in the branch; None without an attack.
        logits: of CLIP, of the picture and its caption before and after the attack.
    """

    original: Image.Image = field(repr=False)
    caption: str = ""
    words: str = ""
    gains: np.ndarray | None = field(default=None, repr=False)
    attacked: Image.Image | None = field(default=None, repr=False)
    logits: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ShieldedAnswer(MultiPassResult):
    """What SHIELD found out about one prompt.

    Args:
        answer: to the prompt; plain decoding's where `shielded` is False.
        pictures: of the prompt, in order; empty where nothing was looked at.
        shielded: whether anything was changed.
        reason: why not; "" if it was.
    """

    pictures: tuple[ShieldedPicture, ...] = ()
    shielded: bool = False

    def save(self, directory: str | Path, stem: str) -> list[Path]:
        """Write `<stem>-N-map.png`, the gains over picture N, and `<stem>-N-attacked.png`.

        Returns:
            The files, as far as there is something to show.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for number, picture in enumerate(self.pictures, 1):
            if picture.gains is not None:
                written.append(folder / f"{stem}-{number}-map.png")
                heat_map(picture.original, picture.gains).save(written[-1])
            if picture.attacked is not None:
                written.append(folder / f"{stem}-{number}-attacked.png")
                picture.attacked.save(written[-1])
        return written
