"""What all commands share: consoles, progress bars, methods and models named by options."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging as transformers_logging

import vlmfix
from vlmfix.failures import is_foreign, is_out_of_memory, one_line, printable, words
from vlmfix.methods.validation import check_temperature
from vlmfix.models.loading import EMBEDDED

out = Console()
err = Console(stderr=True)


def given_path(text: str) -> Path:
    """The path that an option gives; "" would be the folder in which the command runs."""
    if not text or "\0" in text:
        raise typer.BadParameter(f"{printable(text)!r} is no path; name a file or folder")
    return Path(text)


def path_option(help: str, **options: Any) -> Any:
    """An option that gives a path."""
    return typer.Option(parser=given_path, help=help, **options)


def given_temperature(value: float) -> float:
    """The temperature that an option gives, as `check_temperature` allows."""
    try:
        check_temperature("the temperature", value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return value


def given_text(value: str) -> str:
    """The text that an option gives; bytes that are not UTF-8 reach no tokenizer."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"character {error.start + 1} is not valid UTF-8; write it anew") from None
    return value


ModelOption = Annotated[
    str, typer.Option(help=f"Embedded model ({', '.join(EMBEDDED)}), folder or hub id.", show_default=True)
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: over all GPUs, if any.")]
AllowMissingOption = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Go on with a warning where weights are missing (and thus random), of another shape, not part "
        "of the model, or not finite.",
    ),
]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's.")]


def load_model(
    name: str,
    device: str,
    dtype: str,
    *,
    revision: str | None = None,
    allow_missing: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model and processor that the options name.

    Raises:
        ValueError: no such device or dtype, or something is wrong with the checkpoint.
        FileNotFoundError: no such model.
    """
    if not name.strip():
        raise ValueError(f"--model is {name!r}; name {', '.join(EMBEDDED)}, a folder or a hub id")
    if name in EMBEDDED or not err.is_terminal:
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        return vlmfix.load(
            name,
            dtype=dtype,
            device_map=_device_map(device),
            revision=revision,
            allow_missing=allow_missing,
        )
    except Exception as error:
        if not is_foreign(error) or is_out_of_memory(error):
            raise
        raise ValueError(
            f"cannot load {name!r} ({type(error).__name__}: {words(error)}); check its files"
        ) from error


def _device_map(device: str) -> str | None:
    """What transformers calls `device`; None is the CPU."""
    if device == "auto":
        return "auto" if torch.cuda.is_available() else None
    if device.partition(":")[0] == "meta":
        raise ValueError("--device meta holds no weights; use cpu, cuda, cuda:1 or auto")
    try:
        torch.empty(0, device=device)
    except Exception as error:  # backends that are not there raise what they like
        raise ValueError(f"--device {device} is not available here; use cpu, cuda, cuda:1 or auto") from error
    return None if device == "cpu" else device


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
