"""What methods need to know of a checkpoint: shipped in `configs/models`, or written by `calibrate`."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from vlmfix.models.digest import weights_digest
from vlmfix.models.match import fits
from vlmfix.models.profile_files import read_profile_file
from vlmfix.settings import configs_directory


def user_directory() -> Path:
    """Where calibrated profiles are written and looked for: `$VLMFIX_PROFILES`, else `~/.config/vlmfix`.

    Raises:
        ValueError: `VLMFIX_PROFILES` names no folder.
    """
    named = os.environ.get("VLMFIX_PROFILES")
    if not named:
        return Path.home() / ".config" / "vlmfix"
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"VLMFIX_PROFILES is {named!r}, which is no folder; create it, name another one, or unset the "
            "variable"
        )
    return folder


@dataclass(frozen=True)
class Profile:
    """Values of one checkpoint family, each with its source.

    Args:
        name: what people call the checkpoint.
        match: `model_type` (one or a list) of the model and `text_config`, a mapping of the text
            configuration's attributes; all of them must agree. Profiles of users also name the `weights`, by
            their digest, see `vlmfix.models.digest`.
        values: parameter name to `{value, source}`, and `verified: false` where nobody has checked it.
        path: the file.
        used: the values that were asked for and found, each with `value`, `source`, `profile` (the name of
            the one it comes from) and `matched_by` ("weights", or "type and shape").
    """

    name: str
    match: Mapping[str, Any]
    values: Mapping[str, Mapping[str, Any]]
    path: Path
    used: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)
    _files: Mapping[str, Path] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read a profile file.

        Raises:
            ValueError: it is no YAML, or a field is missing or not what it must be; names file and field.
        """
        content = read_profile_file(path)
        return cls(content["name"], content["match"], content["values"], path)

    def fits(self, config: PreTrainedConfig) -> bool:
        """Whether `config` is of this family and shape."""
        return fits(self.match, config)

    def get(self, parameter: str) -> Any:
        """The value of `parameter`, None where this profile has none; warns if nobody has verified it."""
        entry = self.values.get(parameter)
        if entry is None:
            return None
        self.used[parameter] = {"profile": self.name} | {
            key: value for key, value in entry.items() if key != "verified"
        }
        if not entry.get("verified", True):
            warnings.warn(
                f"{parameter} of {self.name} is unverified ({entry['source']}); check it with 'vlmfix "
                "calibrate'",
                stacklevel=2,
            )
        return entry["value"]

    @property
    def sources(self) -> str:
        """Which file each value that was asked for is from, for messages; "" if there was none."""
        return ", ".join(f"{name} is from {self._files.get(name, self.path)}" for name in self.used)

    def file(self, parameter: str) -> Path | None:
        """The file that the value of `parameter` names, beside the profiles; None: this profile has none.

        Raises:
            ValueError: there is no such file.
        """
        name = self.get(parameter)
        if name is None:
            return None
        folders = (user_directory(), _shipped())
        found: Path | None = next((each for folder in folders if (each := folder / name).is_file()), None)
        if found is None:
            raise ValueError(
                f"{parameter} of {self.name} names {name!r}, which is not in "
                f"{' or '.join(map(str, folders))}; put it there, or run 'vlmfix calibrate' again"
            )
        return found


def profiles() -> Iterator[Profile]:
    """All profiles, those that the user calibrated before those that are shipped.

    Raises:
        ValueError: a file is no profile, or `VLMFIX_PROFILES` names no folder.
    """
    for directory in (user_directory(), _shipped()):
        for path in sorted(directory.glob("*.yaml")):
            state = path.stat()
            yield _read(path, (state.st_mtime_ns, state.st_size))


def _shipped() -> Path:
    return configs_directory() / "models"


@functools.lru_cache(maxsize=256)
def _read(path: Path, state: tuple[int, int]) -> Profile:
    """A method that attaches asks for all profiles, and YAML is slow: once for each state of a file."""
    return Profile.read(path)


def find_profile(model: PreTrainedModel | PreTrainedConfig) -> Profile | None:
    """What is known of a model: all profiles that fit, the first deciding on each value; None: nothing.

    A profile of the user is for the very weights that it names, a shipped one for its type and shape.

    Args:
        model: as it was loaded; its configuration alone has no weights, so that only shipped profiles fit.

    Raises:
        ValueError: a file is no profile, or `VLMFIX_PROFILES` names no folder.
    """
    weights = None if isinstance(model, PreTrainedConfig) else functools.partial(weights_digest, model)
    config = model if isinstance(model, PreTrainedConfig) else model.config
    fitting: list[Profile] = []
    for profile in profiles():
        if not profile.fits(config):
            continue
        how = "type and shape"
        if profile.path.parent != _shipped():
            how = "weights"
            if "weights" not in profile.match:
                warnings.warn(
                    f"{profile.path} is left out: it does not say which weights it is for (match.weights); "
                    "remove it and run 'vlmfix calibrate' again, or add the digest that 'vlmfix methods "
                    "--model MODEL' prints",
                    stacklevel=2,
                )
                continue
            if weights is None or weights() != profile.match["weights"]:
                continue
        known: dict[str, Mapping[str, Any]] = {
            name: {"profile": profile.name, **entry, "matched_by": how}
            for name, entry in profile.values.items()
        }
        fitting.append(dataclasses.replace(profile, values=known))
    if not fitting:
        return None
    values = {name: entry for profile in reversed(fitting) for name, entry in profile.values.items()}
    files = {name: profile.path for profile in reversed(fitting) for name in profile.values}
    return dataclasses.replace(fitting[0], values=values, used={}, _files=files)
