"""Settings as people write them: YAML, read one way everywhere."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of version 1.2, in which 1e-1 is one, and whose keys come once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that comes twice, of which YAML would drop the first."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} comes twice; keep one", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Refuse half a character, which an escape can write and no file or tokenizer takes."""
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} holds a lone surrogate, which is no text", node.start_mark
            )
        return str(node.value)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """0x and 0o mark other bases; a leading zero marks none."""
        return int(node.value, 0 if re.match(r"[-+]?0[xo]", node.value) else 10)

    def construct_finite(self, node: yaml.ScalarNode) -> float:
        """Refuse NaN and infinity, which no setting may be."""
        value: float = self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value} is no finite number; write one", node.start_mark
            )
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _NUMBERS[0], re.compile(r"[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|[0-9]+(_[0-9]+)*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor(_NUMBERS[0], _Loader.construct_int)
_Loader.add_constructor(_NUMBERS[1], _Loader.construct_finite)


def configs_directory() -> Path:
    """`configs/`: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is no YAML, repeats a key, has a number that is not finite, or is nested too deeply;
            the message is the reason alone, and names the line of a text of several.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        words = f"{error.problem or error.context or 'unreadable'}"
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark is not None and "\n" in text.strip() else ""
        raise ValueError(f"{place}{' '.join(words.split())}") from error
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None
    except Exception as error:  # for a value that is not what its tag says, constructors raise what they like
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump_yaml(value: Any) -> str:
    """YAML of plain values that `parse_yaml` reads as they were; keys in their order.

    Raises:
        yaml.YAMLError: a value is no text, number, truth value, list or mapping.
    """
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )


def user_path(name: str | Path) -> Path:
    """A path as people write it, `~` for a home.

    Raises:
        ValueError: it holds what no path may, or a home that is not there.
    """
    if "\0" in str(name):
        raise ValueError(f"{str(name)!r} is no path; remove the null character")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(name)!r} names no home on this machine; write the path in full") from error


def read_yaml(path: Path) -> Any:
    """The value of a YAML file in UTF-8, with or without byte order mark.

    Raises:
        ValueError: as for `parse_yaml`, or it is not UTF-8; the message names the file.
        OSError: it cannot be read.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no YAML (byte {error.object[error.start]:#04x} is not UTF-8); save it as UTF-8"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is no YAML ({error})") from error


def closest(word: str, choices: Iterable[str]) -> str:
    """What a message adds about a misspelt name: " (did you mean 'pope'?)", or "" where nothing is close."""
    match = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
