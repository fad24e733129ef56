"""What all commands share: consoles, progress bars, methods and models named by options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging as transformers_logging

import vlmfix
from vlmfix.models.loading import EMBEDDED

out = Console()
err = Console(stderr=True)

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


def parse_methods(names: str, settings: Iterable[str]) -> list[vlmfix.Method]:
    """The methods that `a+b` names, with their parameters; none for greedy.

    Args:
        names: of one method, of several joined by `+`, or "greedy".
        settings: `KEY=VALUE`, of one among several methods `METHOD.KEY=VALUE`; values are YAML.

    Raises:
        ValueError: an unknown method or parameter, or a setting that is unreadable or of no method.
    """
    chosen = [] if names == "greedy" else names.split("+")
    parameters: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for key, value in map(parse_setting, settings):
        owner, dot, parameter = key.rpartition(".")
        if not chosen:
            raise ValueError(f"greedy has no parameters, but --set gives {key}; name a --method")
        if not dot and len(chosen) > 1:
            raise ValueError(f"--set {key} may belong to any of {names}; write {chosen[0]}.{key}")
        if dot and owner not in parameters:
            raise ValueError(f"--set {key} is of a method that is not in --method {names}")
        parameters[owner or chosen[0]][parameter] = value
    return [vlmfix.make_method(name, **parameters[name]) for name in chosen]


def parse_setting(text: str) -> tuple[str, Any]:
    """Key and value of `KEY=VALUE`; the value is YAML.

    Raises:
        ValueError: it has another form.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"--set {text!r} is not KEY=VALUE, such as --set moved_fraction=0.6")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(
            f"--set {text!r}: the value is not readable; write numbers, true/false or [1, 2]"
        ) from error


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
    if name in EMBEDDED or not err.is_terminal:
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return vlmfix.load(
        name,
        dtype=dtype,
        device_map=_device_map(device),
        revision=revision,
        allow_missing=allow_missing,
    )


def _device_map(device: str) -> str | None:
    """What transformers calls `device`; None is the CPU."""
    if device == "auto":
        return "auto" if torch.cuda.is_available() else None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} is not available here; use cpu, cuda, cuda:1 or auto") from error
    return None if device == "cpu" else device


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
