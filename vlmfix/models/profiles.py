"""What methods need to know of a checkpoint: shipped in `configs/models`, or written by `calibrate`."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from vlmfix.settings import read_yaml

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_directory() -> Path:
    """`configs/`: inside an installed package, beside the package in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def user_directory() -> Path:
    """Where calibrated profiles are written and looked for: `$VLMFIX_PROFILES`, else `~/.config/vlmfix`."""
    return Path(os.environ.get("VLMFIX_PROFILES") or Path.home() / ".config" / "vlmfix")


@dataclass(frozen=True)
class Profile:
    """Values of one checkpoint family, each with its source.

    Args:
        name: what people call the checkpoint.
        match: `model_type` (one or a list) of the model and `text_config`, a mapping of the text
            configuration's attributes; all of them must agree.
        values: parameter name to `{value, source}`, and `verified: false` where nobody has checked it.
        path: the file.
    """

    name: str
    match: Mapping[str, Any]
    values: Mapping[str, Mapping[str, Any]]
    path: Path

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read a profile file.

        Raises:
            ValueError: it is no YAML, or lacks `name`, `match` or `values`, or a value lacks its source.
        """
        try:
            content = read_yaml(path)
            match, values = content["match"], content["values"]
            needed = [
                match["model_type"],
                *(entry[key] for entry in values.values() for key in ("value", "source")),
            ]
            if None in needed:
                raise KeyError("an empty entry")
            return cls(content["name"], match, values, path)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a profile ({type(error).__name__}: {error}); it needs name, match and "
                "values, each value with its source"
            ) from error

    def fits(self, config: PreTrainedConfig) -> bool:
        """Whether `config` is of this family and shape."""
        types = self.match["model_type"]
        text = config.get_text_config()
        return config.model_type in ([types] if isinstance(types, str) else types) and all(
            getattr(text, name, None) == value for name, value in self.match.get("text_config", {}).items()
        )

    def get(self, parameter: str) -> Any:
        """The value of `parameter`, None where this profile has none; warns if nobody has verified it."""
        entry = self.values.get(parameter)
        if entry is None:
            return None
        if not entry.get("verified", True):
            warnings.warn(
                f"{parameter} of {self.name} is unverified ({entry['source']}); check it with 'vlmfix "
                "calibrate'",
                stacklevel=2,
            )
        return entry["value"]


def profiles() -> Iterator[Profile]:
    """All profiles, those that the user calibrated before those that are shipped."""
    for directory in (user_directory(), configs_directory() / "models"):
        for path in sorted(directory.glob("*.yaml")):
            state = path.stat()
            yield _read(path, (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=256)
def _read(path: Path, state: tuple[int, int]) -> Profile:
    """A method that attaches asks for all profiles, and YAML is slow: once for each state of a file."""
    return Profile.read(path)


def find_profile(config: PreTrainedConfig) -> Profile | None:
    """What is known of a model: all profiles that fit, the first deciding on each value; None: nothing."""
    fitting = [profile for profile in profiles() if profile.fits(config)]
    if not fitting:
        return None
    values = {name: entry for profile in reversed(fitting) for name, entry in profile.values.items()}
    return dataclasses.replace(fitting[0], values=values)
