"""Named protocols: prompt, suffix, images, length, decoding and parser, so that numbers can be compared."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets.layouts import DATA_SETS
from vlmfix.evaluation.files.hashing import canonical_json
from vlmfix.methods.validation import LEAST_TEMPERATURE
from vlmfix.settings import closest, read_yaml

JOINS = {"newline": "\n", "space": " "}


@dataclass(frozen=True)
class Setting:
    """A setting that the protocols of a task may have.

    Args:
        allows: whether a value, lists as tuples, is one of it.
        wanted: the values that are allowed, in words.
        required: whether every protocol must have it.
        default: its value in a protocol without it; of no matter where `Protocol` has a field of its name.
    """

    allows: Callable[[Any], bool]
    wanted: str
    required: bool = False
    default: Any = None


def one_of(choices: Iterable[str], *, required: bool = False, default: Any = None) -> Setting:
    """A setting that is one of several names."""
    return Setting(
        lambda value: isinstance(value, str) and value in choices,
        f"one of {', '.join(choices)}",
        required,
        default,
    )


def count(least: int = 0, *, default: int = 0) -> Setting:
    """A setting that is a whole number."""
    return Setting(
        lambda value: _is_count(value, least), f"a whole number of {least} or more", default=default
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_seeds(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_count, value)) and 0 < len(value) == len(set(value))


TEXT = Setting(lambda value: isinstance(value, str), "text", default="")
SWITCH = Setting(lambda value: isinstance(value, bool), "true or false", default=False)
JOIN = one_of(JOINS)
PROMPT = Setting(
    lambda value: isinstance(value, str) and value.strip() != "", "what to ask about the image", required=True
)

_DECODING: dict[str, Setting] = {
    "max_new_tokens": dataclasses.replace(count(1), required=True),
    "num_beams": count(1),
    "temperature": Setting(
        lambda value: _is_number(value) and (value == 0 or value >= LEAST_TEMPERATURE),
        f"0 or a number of {LEAST_TEMPERATURE} or more",
    ),
    "top_p": Setting(lambda value: _is_number(value) and 0 < value <= 1, "a number in (0, 1]"),
    "top_k": count(),
    "seeds": Setting(_are_seeds, "a list of different whole numbers"),
}
_COMMON = ("prompt", "suffix", "join", "capitalize", "parser", "scorer")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that has to be equal before two numbers may be compared, except the data files.

    Args:
        name: as in the protocols of its task, or in the user's file.
        task: name of the task.
        max_new_tokens: length limit of an answer, at least 1.
        num_beams: beams of the search, at least 1.
        temperature: 0 is greedy (or beam search); above 0 answers are sampled.
        top_p: share of probability that sampling keeps, in (0, 1].
        top_k: tokens that sampling keeps; 0 keeps all.
        seeds: one repeat of every sample each.
        prompt: of captions; "" where samples have questions.
        suffix: after the question; "" for none.
        join: "newline" or "space" between question and suffix.
        capitalize: whether a question begins with a capital letter whatever the file has.
        parser: of answers, by name.
        scorer: variant of the metric, by name.
        own: further settings, which only this task has.
        mirrors: whose published numbers it imitates, and where it differs.
        data_set: one of `DATA_SETS`, once it is known; "" before.
        replaced: the values that `with_` replaced, as the named protocol has them.
        allowed: the settings that the task declares besides decoding.
    """

    name: str
    task: str
    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seeds: tuple[int, ...] = (0,)
    prompt: str = ""
    suffix: str = ""
    join: str = "newline"
    capitalize: bool = False
    parser: str = ""
    scorer: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    mirrors: str = ""
    data_set: str = ""
    replaced: Mapping[str, Any] = field(default_factory=dict)
    allowed: Mapping[str, Setting] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, name: Any, task: str, values: Any, allowed: Mapping[str, Setting]) -> Protocol:
        """The protocol that a mapping of settings describes, checked.

        Args:
            name: of letters, digits, '.', '-' and '_'.
            task: name of the task.
            values: settings of decoding and of the task; `mirrors` in words.
            allowed: the settings of the task.

        Raises:
            ValueError: an unknown or missing setting, or a value of the wrong type or out of its range.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"the name {name!r} of a protocol must be of letters, digits, '.', '-' and '_'")
        if not isinstance(values, Mapping):
            raise ValueError(f"{name} must be a mapping of settings, got {values!r}")
        required = [key for key, setting in {**_DECODING, **allowed}.items() if setting.required]
        missing = [key for key in required if key not in values]
        if missing:
            raise ValueError(f"{name} lacks {', '.join(missing)}")
        own = {key: setting.default for key, setting in allowed.items() if key not in _COMMON}
        bare = cls(
            name=name,
            task=task,
            max_new_tokens=1,
            own=own,
            mirrors=str(values.get("mirrors", "")),
            allowed=allowed,
        )
        return bare._changed({key: value for key, value in values.items() if key != "mirrors"})

    @property
    def id(self) -> str:
        """Name, data set and deviations, such as `pope.llava/coco+max_new_tokens=32`."""
        data_set = f"/{self.data_set}" if self.data_set else ""
        changes = "".join(f"+{key}={_shown(self._value(key))}" for key in sorted(self.replaced))
        return f"{self.name}{data_set}{changes}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that the protocol fixes, but not whom it mirrors, by name."""
        hidden = ("own", "mirrors", "allowed")
        fields = [each.name for each in dataclasses.fields(self) if each.name not in hidden]
        return {name: getattr(self, name) for name in fields} | dict(self.own)

    def ask(self, question: str) -> str:
        """What the user says: the question, then the suffix."""
        asked = question[:1].upper() + question[1:] if self.capitalize else question
        return f"{asked}{JOINS[self.join]}{self.suffix}" if self.suffix else asked

    def on(self, data_set: str) -> Protocol:
        """The same protocol on a data set.

        Raises:
            ValueError: it is none of `DATA_SETS`.
        """
        if data_set not in DATA_SETS:
            raise ValueError(
                f"{self.name} has no data set {data_set!r}{closest(data_set, DATA_SETS)}; use one of "
                f"{', '.join(DATA_SETS)}"
            )
        return dataclasses.replace(self, data_set=data_set)

    def with_(self, **changes: Any) -> Protocol:
        """The protocol with other values, which its id then names.

        Raises:
            ValueError: a key that the task has not, or a value of the wrong type or out of its range.
        """
        changed = self._changed(changes)
        before = dict(self.replaced)
        for key in changes:
            before.setdefault(key, self._value(key))
            if before[key] == changed._value(key):
                del before[key]
        return dataclasses.replace(changed, replaced=before)

    def _value(self, key: str) -> Any:
        return self.own[key] if key in self.own else getattr(self, key)

    def _changed(self, changes: Mapping[str, Any]) -> Protocol:
        """The protocol with other values in their proper types."""
        allowed = {**_DECODING, **self.allowed}
        fields: dict[str, Any] = {}
        own = dict(self.own)
        for key, value in changes.items():
            if key not in allowed:
                raise ValueError(
                    f"{self.name} has no setting {key!r}{closest(str(key), allowed)}; a protocol of "
                    f"{self.task} has {', '.join(allowed)}"
                )
            proper = tuple(value) if isinstance(value, list) else value
            if not allowed[key].allows(proper):
                raise ValueError(f"{key} of {self.name} must be {allowed[key].wanted}, got {value!r}")
            if key in own:
                own[key] = proper
            else:
                fields[key] = float(value) if key in ("temperature", "top_p") else proper
        changed = dataclasses.replace(self, **fields, own=own)
        _refuse_contradictions(changed)
        return changed


@dataclass(frozen=True)
class ProtocolFile:
    """The content of a protocol file; only those beside a task name defaults."""

    task: str
    protocols: Mapping[str, Any]
    default: str = ""
    default_synthetic: str = ""


def read_protocols(path: Path) -> ProtocolFile:
    """A file of protocols, whose settings are not checked yet; every error names the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no protocol file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no protocol file {str(path)!r}; check the path")
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("protocols"), dict):
        raise ValueError(f"{path} is no protocol file; it needs task and protocols: {{name: {{...}}}}")
    unknown = sorted(map(str, content.keys() - {field.name for field in dataclasses.fields(ProtocolFile)}))
    if unknown:
        raise ValueError(f"{path} has unknown keys: {', '.join(unknown)}; it needs task and protocols")
    return ProtocolFile(**{"task": "", **content})


def _refuse_contradictions(protocol: Protocol) -> None:
    if protocol.temperature == 0 and len(protocol.seeds) > 1:
        raise ValueError(
            f"{protocol.name} has {len(protocol.seeds)} seeds but decodes greedily, every repeat the same; "
            "set temperature above 0 or one seed"
        )
    if protocol.temperature > 0 and protocol.num_beams > 1:
        raise ValueError(
            f"{protocol.name} has num_beams={protocol.num_beams} and temperature={protocol.temperature}; "
            "sample with one beam or search with temperature 0"
        )


def _shown(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[\w.-]+", value)
    return value if plain else canonical_json(value)
