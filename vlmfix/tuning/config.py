"""Settings of a search for a recipe."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.atomic import create_json
from vlmfix.evaluation.files.hashing import differences, plain
from vlmfix.evaluation.runner.run_store import ResumeError
from vlmfix.models.embedded import DEFAULT_MODEL
from vlmfix.tuning.sets import Sizes

SETTINGS = "tune.json"
SYNTHETIC: Mapping[str, Mapping[str, Any]] = {
    "unusual scenes": {"synthetic": {"count": 600, "seed": 271_828, "split": "test"}},
    "usual scenes": {"synthetic": {"count": 600, "seed": 271_828, "split": "train"}},
}
"""The data sets of `--data synthetic`: scenes that often lack the partner of an object, and scenes like those
of the training of the embedded models, in which partners stand together."""
TRIALS = 54

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What a search is asked for.

    Args:
        task: name of the benchmark.
        output: folder of the run.
        model: embedded model, folder or hub id.
        data: data sets by name, as `vlmfix.evaluation.datasets.sources.open_data` takes them; guards hold on
            each of them.
        objective: metrics to improve, the most important first; (): what the task names.
        keep: guards, such as "recall >= -0.01"; None: what the task names.
        trials: number of candidates that are tried.
        budget: seconds of search, after which no further round of trials begins; None: no bound.
        seed: of the search.
        sizes: numbers of images.
        protocol: id of the task's protocol; None: its default.
        batch_size: prompts per forward pass; 0 finds one by itself.
        device: as on the command line.
        dtype: as on the command line.
        revision: branch, tag or commit of a hub id.
        allow_missing: as on the command line.
    """

    task: str
    output: Path
    model: str = DEFAULT_MODEL
    data: Mapping[str, Any] = field(default_factory=lambda: dict(SYNTHETIC))
    objective: tuple[str, ...] = ()
    keep: tuple[str, ...] | None = None
    trials: int = TRIALS
    budget: float | None = None
    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    protocol: str | None = None
    batch_size: int = 0
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    allow_missing: bool = False

    def claim(self) -> None:
        """Note the settings in the folder of the run, or see that those there are the same.

        Raises:
            ResumeError: the folder is of another search.
        """
        own = plain(dataclasses.asdict(self))
        for name in ("output", "batch_size", "device", "budget"):  # which change no result
            del own[name]
        path = self.output / SETTINGS
        create_json(path, own)
        known = json.loads(path.read_text(encoding="utf-8"))
        if lines := differences(known, own):
            raise ResumeError(
                f"{self.output} holds another search ({'; '.join(lines)}); choose another --output, and "
                "report what it finds on pictures that no earlier search was tested on"
            )


def parse_budget(text: str) -> float:
    """Seconds of `90s`, `20m` or `2h`.

    Raises:
        ValueError: it has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"--budget is {text!r}; it must be a time such as 90s, 20m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def data_sets(given: Sequence[str]) -> dict[str, Any]:
    """Data sets by name of the values of `--data`."""
    found: dict[str, Any] = {}
    for each in given:
        if each == "synthetic":
            found |= SYNTHETIC
        else:
            name = Path(each).name or each
            found[name if name not in found else each] = each
    return found
