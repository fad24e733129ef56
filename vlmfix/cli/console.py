"""What commands print: text for people, JSON, warnings and progress."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from vlmfix.failures import one_line, printable

out = Console()
err = Console(stderr=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document as strict JSON in ASCII, whatever its values are: not every terminal writes UTF-8."""
    print(json.dumps(strict(document), indent=2, allow_nan=False, default=str))


def strict(value: Any) -> Any:
    """A value of which JSON can be made: numbers that are not finite as null, keys and names as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value if value.isascii() else "".join(map(_valid, value))
    if isinstance(value, Mapping):
        return {strict(str(key)): strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(each) for each in value]
    return value


def _valid(character: str) -> str:
    """A character; a surrogate, which strict readers of JSON refuse, in escaped form."""
    return printable(character) if "\ud800" <= character <= "\udfff" else character


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as one line on stderr, in the place of `warnings.showwarning`."""
    err.print(f"[yellow]warning:[/] {escape(one_line(str(message)))}", soft_wrap=True, highlight=False)


@contextmanager
def progress_bar(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; silent where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns,
        console=err,
        transient=True,
        redirect_stdout=out.is_terminal,  # answers that go to a file or pipe must not land on stderr
        disable=quiet or not err.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
