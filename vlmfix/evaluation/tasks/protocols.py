"""Named protocols: prompt, suffix, images, length, decoding and parser, so that numbers can be compared."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmfix.evals.chair.vocabulary import VARIANTS
from vlmfix.evals.pope.parsers import PARSERS
from vlmfix.evals.vqa.scorer import MODES
from vlmfix.evaluation.files.hashing import canonical_json
from vlmfix.methods.validation import LEAST_TEMPERATURE
from vlmfix.models.profiles import configs_directory
from vlmfix.settings import read_yaml

DATA_SETS = ("coco", "aokvqa", "gqa", "synthetic", "custom")
"""Sources of questions; `custom` is all that the user brings or has built."""

JOINS = {"newline": "\n", "space": " "}

_DECODING = ("max_new_tokens", "num_beams", "temperature", "top_p", "top_k", "seeds")
_OWN = {
    "pope": ("suffix", "join", "parser"),
    "chair": ("prompt", "suffix", "join", "scorer", "drop_incomplete", "subset", "subset_size"),
    "vqa": ("suffix", "join", "capitalize", "ocr_tokens", "scorer"),
}
_NEEDED = {"pope": ("parser",), "chair": ("prompt", "scorer"), "vqa": ("scorer",)}
_SCORERS = {"chair": VARIANTS, "vqa": MODES}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that has to be equal before two numbers may be compared, except the data files.

    Args:
        name: as shipped in `configs/protocols`, or in the user's file.
        task: "pope", "chair" or "vqa".
        max_new_tokens: length limit of an answer, at least 1.
        num_beams: beams of the search, at least 1.
        temperature: 0 is greedy (or beam search); above 0 answers are sampled.
        top_p: share of probability that sampling keeps, in (0, 1].
        top_k: tokens that sampling keeps; 0 keeps all.
        seeds: one sample of every item each.
        prompt: of captions; "" where items have questions.
        suffix: after the question; "" for none.
        join: "newline" or "space" between question and suffix.
        capitalize: whether a question begins with a capital letter whatever the file has.
        ocr_tokens: "none": no text found in the image is put into the prompt.
        parser: of yes/no answers, by name.
        scorer: variant of the metric, by name.
        drop_incomplete: whether a last sentence that the length limit cut is dropped.
        subset: name of the list of images; "" for all of them.
        subset_size: length of the list; 0 for any.
        mirrors: whose published numbers it imitates, and where it differs.
        data_set: one of `DATA_SETS`, once it is known; "" before.
        replaced: the values that `with_` replaced, as the named protocol has them.
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
    ocr_tokens: str = "none"
    parser: str = ""
    scorer: str = ""
    drop_incomplete: bool = False
    subset: str = ""
    subset_size: int = 0
    mirrors: str = ""
    data_set: str = ""
    replaced: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name, data set and deviations, such as `pope.llava/coco+max_new_tokens=32`."""
        data_set = f"/{self.data_set}" if self.data_set else ""
        changes = "".join(f"+{key}={_shown(getattr(self, key))}" for key in sorted(self.replaced))
        return f"{self.name}{data_set}{changes}"

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
                f"{self.name} has no data set {data_set!r}{_closest(data_set, DATA_SETS)}; use one of "
                f"{', '.join(DATA_SETS)}"
            )
        return dataclasses.replace(self, data_set=data_set)

    def with_(self, **changes: Any) -> Protocol:
        """The protocol with other values, which its id then names.

        Raises:
            ValueError: a key that the task has not, or a value of the wrong type or out of its range.
        """
        values = _checked(self.name, self.task, changes)
        before = dict(self.replaced)
        for key, value in values.items():
            before.setdefault(key, getattr(self, key))
            if before[key] == value:
                del before[key]
        changed = dataclasses.replace(self, **values, replaced=before)
        _refuse_contradictions(changed)
        return changed


def protocols() -> dict[str, Protocol]:
    """The shipped protocols by name."""
    return {name: protocol for file in _shipped() for name, protocol in file.protocols.items()}


def load_protocol(id: str | Path) -> Protocol:
    """A shipped protocol by id, with its data set or without, or the one in a YAML file of the user.

    A file has the form of those in `configs/protocols`, with one protocol under a name of its own.

    Raises:
        ValueError: no protocol has that id, or the file does not hold exactly one valid new protocol.
        FileNotFoundError: there is no such file.
    """
    path = Path(id)
    if path.suffix in (".yaml", ".yml"):
        return _of_user(path)
    name, slash, data_set = str(id).partition("/")
    known = protocols()
    if name not in known:
        raise ValueError(
            f"unknown protocol {str(id)!r}{_closest(name, known)}; known protocols: {', '.join(known)}; or "
            "give a YAML file"
        )
    return known[name].on(data_set) if slash else known[name]


def default_protocol(task: str, data_set: str = "coco") -> Protocol:
    """What a task uses if nobody says otherwise; on synthetic scenes, what the embedded models can answer.

    Raises:
        ValueError: unknown task.
    """
    for file in _shipped():
        if file.task == task:
            return file.protocols[file.default_synthetic if data_set == "synthetic" else file.default]
    raise ValueError(f"unknown task {task!r}{_closest(task, _OWN)}; known tasks: {', '.join(_OWN)}")


@dataclass(frozen=True)
class _File:
    """The content of a protocol file; only shipped ones name defaults."""

    task: str
    protocols: Mapping[str, Protocol]
    default: str = ""
    default_synthetic: str = ""


@functools.cache
def _shipped() -> tuple[_File, ...]:
    return tuple(_read(path) for path in sorted((configs_directory() / "protocols").glob("*.yaml")))


def _of_user(path: Path) -> Protocol:
    found = _read(path).protocols
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} protocols ({', '.join(found)}); keep one in a file")
    [(name, protocol)] = found.items()
    if name in protocols():
        raise ValueError(f"{path}: {name} is a shipped protocol; choose another name for yours")
    return protocol


def _read(path: Path) -> _File:
    """A file of protocols; every error names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no protocol file {str(path)!r}; check the path")
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("protocols"), dict):
        raise ValueError(f"{path} is no protocol file; it needs task and protocols: {{name: {{...}}}}")
    unknown = sorted(map(str, content.keys() - {field.name for field in dataclasses.fields(_File)}))
    if unknown:
        raise ValueError(f"{path} has unknown keys: {', '.join(unknown)}; it needs task and protocols")
    task = content.get("task")
    if not isinstance(task, str) or task not in _OWN:
        raise ValueError(f"{path}: task is {task!r}; use one of {', '.join(_OWN)}")
    try:
        return _File(
            **content | {"protocols": {n: _made(n, task, v) for n, v in content["protocols"].items()}}
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _made(name: Any, task: str, values: Any) -> Protocol:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"the name {name!r} of a protocol must be of letters, digits, '.', '-' and '_'")
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be a mapping of settings, got {values!r}")
    missing = [key for key in ("max_new_tokens", *_NEEDED[task]) if key not in values]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    mirrors = str(values.get("mirrors", ""))
    checked = _checked(name, task, {key: value for key, value in values.items() if key != "mirrors"})
    protocol = Protocol(name=name, task=task, mirrors=mirrors, **checked)
    _refuse_contradictions(protocol)
    return protocol


def _checked(name: str, task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their proper types."""
    allowed = (*_DECODING, *_OWN[task])
    checked = {}
    for key, value in values.items():
        if key not in allowed:
            raise ValueError(
                f"{name} has no setting {key!r}{_closest(str(key), allowed)}; a protocol of {task} has "
                f"{', '.join(allowed)}"
            )
        good, wanted = _one_of(_SCORERS[task]) if key == "scorer" else _RULES[key]
        proper = tuple(value) if isinstance(value, list) else value
        if not good(proper):
            raise ValueError(f"{key} of {name} must be {wanted}, got {value!r}")
        checked[key] = float(value) if key in ("temperature", "top_p") else proper
    return checked


def _refuse_contradictions(protocol: Protocol) -> None:
    if protocol.temperature == 0 and len(protocol.seeds) > 1:
        raise ValueError(
            f"{protocol.name} has {len(protocol.seeds)} seeds but decodes greedily, every sample the same; "
            "set temperature above 0 or one seed"
        )
    if protocol.temperature > 0 and protocol.num_beams > 1:
        raise ValueError(
            f"{protocol.name} has num_beams={protocol.num_beams} and temperature={protocol.temperature}; "
            "sample with one beam or search with temperature 0"
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_seeds(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_count, value)) and 0 < len(value) == len(set(value))


def _one_of(choices: Iterable[str]) -> tuple[Any, str]:
    return (lambda value: isinstance(value, str) and value in choices), f"one of {', '.join(choices)}"


_TEXT = (lambda value: isinstance(value, str), "text")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")
_FROM_ZERO = (_is_count, "a whole number of 0 or more")
_FROM_ONE = (lambda value: _is_count(value, 1), "a whole number of 1 or more")
_RULES: dict[str, tuple[Any, str]] = {
    "max_new_tokens": _FROM_ONE,
    "num_beams": _FROM_ONE,
    "temperature": (
        lambda value: _is_number(value) and (value == 0 or value >= LEAST_TEMPERATURE),
        f"0 or a number of {LEAST_TEMPERATURE} or more",
    ),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number in (0, 1]"),
    "top_k": _FROM_ZERO,
    "seeds": (_are_seeds, "a list of different whole numbers"),
    "prompt": (lambda value: isinstance(value, str) and value.strip() != "", "what to ask about the image"),
    "suffix": _TEXT,
    "join": _one_of(JOINS),
    "capitalize": _SWITCH,
    "ocr_tokens": (lambda value: value == "none", "none: text found in images is not offered"),
    "parser": _one_of(PARSERS),
    "drop_incomplete": _SWITCH,
    "subset": _TEXT,
    "subset_size": _FROM_ZERO,
}


def _shown(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[\w.-]+", value)
    return value if plain else canonical_json(value)


def _closest(word: str, choices: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
