"""What the command line says of an exception: what a user can fix, or that it is a bug.

An exception is for the user if it was raised for one, with a message that says what to do:
`UnsupportedError`, a `ValueError` or `ImportError` of a `raise` statement in this package, an `OSError` of
anywhere. One that comes out of another package is told as such. The rest are bugs of this package, and
called so.
"""

from __future__ import annotations

import errno
import opcode
import sys
import unicodedata
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from vlmfix.errors import PACKAGES, UnsupportedError

OURS = ("vlmfix", "__main__")
DEBUG_HINT = "--debug shows the traceback"
_RAISE = opcode.opmap["RAISE_VARARGS"]
_IMPORTS = (opcode.opmap["IMPORT_NAME"], opcode.opmap["IMPORT_FROM"])
_LONGEST, _LONGEST_NAME = 2000, 300
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory")


class Failure(NamedTuple):
    """What to say of an exception.

    Args:
        kind: "error" or "bug in vlmfix".
        message: one line.
        exit_code: of the process.
    """

    kind: str
    message: str
    exit_code: int


def failure_of(error: BaseException) -> Failure:
    """What to say of an exception that ended a command."""
    if isinstance(error, KeyboardInterrupt):
        return Failure("error", "stopped", 130)
    if hasattr(error, "format_message"):  # of the parser: a wrong option or argument
        return Failure("error", one_line(error.format_message()), 2)
    if is_out_of_memory(error):
        return Failure(
            "error",
            f"out of memory ({words(error)}); try --dtype bfloat16, smaller pictures, a smaller model or "
            "another --device",
            2,
        )
    if _is_of_installation(error):
        message = f"a package cannot be imported ({words(error)}); install vlmfix again"
        return Failure("error", message, 1)
    if is_for_users(error):
        return Failure("error", words(error), 2)
    kind = type(error).__name__
    package = _package(error)
    if package not in OURS:
        return Failure(
            "error",
            f"{package} failed with {kind}: {words(error)}; {DEBUG_HINT}; if the model works without "
            f"vlmfix, report it at {_tracker()}",
            2,
        )
    place = _raised_at(error)
    where = "" if place is None else f" ({Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno})"
    return Failure(
        "bug in vlmfix",
        f"{kind}: {words(error)}{where}; please report it with the command at {_tracker()}; {DEBUG_HINT}",
        1,
    )


def is_for_users(error: BaseException) -> bool:
    """Whether the message was written for the user of the command line."""
    if isinstance(error, UnsupportedError | OSError):
        return True
    return isinstance(error, ValueError | ImportError) and _was_raised_here(error)


def is_foreign(error: BaseException) -> bool:
    """Whether it comes out of another package, and is no error that was raised for users."""
    return not is_for_users(error) and _package(error) not in OURS


def _is_of_installation(error: BaseException) -> bool:
    """Whether an `import` statement of this package failed; an OSError is then of a shared library."""
    return isinstance(error, ImportError | OSError) and any(
        _package_of(place) in OURS and _operation(place) in _IMPORTS for place in _trace(error)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    torch = sys.modules.get("torch")  # where it is not imported, nothing of it was raised
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def words(error: BaseException) -> str:
    """What the exception says, on one line."""
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        names = [name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME:]}" for name in names]
        return one_line(": ".join([error.strerror, *map(repr, names)]))
    text = one_line(str(error)) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def one_line(text: str) -> str:
    """A text without line breaks and without what a terminal would obey or cannot show."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """A text with control characters, and bytes of file names that are no text, in escaped form."""
    return "".join(
        character if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00
    if 0x80 <= byte <= 0xFF:  # how Python holds a byte of a file name that is not UTF-8
        return f"\\x{byte:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _trace(error: BaseException) -> Iterator[TracebackType]:
    """The places it passed, from the innermost outwards."""
    places = []
    place = error.__traceback__
    while place is not None:
        places.append(place)
        place = place.tb_next
    return reversed(places)


def _package_of(place: TracebackType) -> str:
    return str(place.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def _operation(place: TracebackType) -> int:
    """What the interpreter did there."""
    return place.tb_frame.f_code.co_code[place.tb_lasti]


def _raised_at(error: BaseException) -> TracebackType | None:
    """The innermost place outside the standard library, whose functions fail for those who call them."""
    hidden = sys.stdlib_module_names - set(OURS)
    places = ((place, _package_of(place)) for place in _trace(error))
    return next((place for place, name in places if name.isidentifier() and name not in hidden), None)


def _package(error: BaseException) -> str:
    place = _raised_at(error)
    return "vlmfix" if place is None else _package_of(place)


def _was_raised_here(error: BaseException) -> bool:
    """Whether a `raise` statement of this package or a plugin made it, and not an operation that failed."""
    place = next(_trace(error), None)
    return place is None or (_package_of(place) in PACKAGES.union(OURS) and _operation(place) == _RAISE)


def _tracker() -> str:
    """Where bugs go."""
    try:
        entries = metadata.metadata("vlmfix").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        entries = []
    urls = {label.strip().lower(): url.strip() for label, _, url in (each.partition(",") for each in entries)}
    known = (urls[label] for label in ("issues", "repository", "homepage") if label in urls)
    return next(known, "the project's issue tracker")
