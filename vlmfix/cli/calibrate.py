"""The command `vlmfix calibrate`."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vlmfix.cli.console import out, progress_bar
from vlmfix.cli.options import AllowMissingOption, DeviceOption, DtypeOption, ModelOption, path_option
from vlmfix.models.embedded import DEFAULT_MODEL

CALIBRATED = (
    "var",
    "gift",
    "adaptinfer",
    "dyvte",
    "adhh",
    "adaiat",
    "act",
    "registers",
    "vti",
    "nullu",
    "head_pursuit",
)

# Which module of which benchmark makes what a method is calibrated on of annotated pictures, and how.
_ANNOTATED = {
    "captions": ("chair", "calibration_images", "annotated_images"),
    "pairs": ("chair", "calibration_images", "caption_pairs"),
    "questions": ("pope", "calibration_questions", "yes_no_questions"),
}


def _complete_calibrated(incomplete: str) -> list[str]:
    return [name for name in CALIBRATED if name.startswith(incomplete)]


def calibrate(
    images: Annotated[
        Path,
        path_option(
            "Folder with 20 to 50 ordinary pictures, for registers 100 to 200; for adhh, adaiat, act, vti, "
            "nullu a COCO root or what 'vlmfix scenes' writes, with 50 to 150 annotated ones.",
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[
        str,
        typer.Option(
            help=f"Method that needs the values: {', '.join(CALIBRATED)}.",
            autocompletion=_complete_calibrated,
        ),
    ] = "var",
    words: Annotated[
        str | None,
        typer.Option(
            help="Words of a concept, for head_pursuit: objects, colours, or a text file with a word a line."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures to read at most. (default: what the method needs, 50 to 256)",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        path_option("Profile file to write. (default: where later runs look first)"),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """Find what a method needs to know of a checkpoint that has no profile."""
    from vlmfix.calibration.calibrate import calibrate as find_values
    from vlmfix.calibration.calibrate import calibrator_of, check_words, write_profile
    from vlmfix.calibration.concepts import ConceptWords
    from vlmfix.cli.loading import load_model
    from vlmfix.cli.pictures import is_readable, named_pictures
    from vlmfix.evaluation.tasks.registry import task_module
    from vlmfix.methods.registry import get_method
    from vlmfix.models.profiles import user_directory

    method = get_method(method).name  # a wrong name shows before the model is loaded
    calibrator = calibrator_of(method)
    concept = None if words is None else ConceptWords.read(words)
    check_words(method, concept)
    if output is not None:
        _check_profile_file(output)
    if output is None:
        user_directory()  # refused, if at all, before the work
    pictures: Sequence[Any]
    most = limit or calibrator.most
    if calibrator.on == "pictures":
        pictures = list(itertools.islice(filter(is_readable, named_pictures([images])), most))
    else:
        task, module, function = _ANNOTATED[calibrator.on]
        annotated = getattr(task_module(task, module), function)(images, most)
        pictures = [each for each in annotated if is_readable(each.image)]
    if not pictures:
        raise ValueError(f"no picture in {str(images)!r} can be read; give others")
    if len(pictures) < calibrator.least:
        warnings.warn(
            f"{len(pictures)} pictures; {calibrator.least} or more give a firmer result", stacklevel=1
        )
    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    with progress_bar("reading", calibrator.reads * len(pictures)) as advance:
        found = find_values(method, *loaded, pictures, words=concept, progress=advance)
    path = write_profile(loaded[0], found, model, output)
    table = Table(title=escape(f"{method} on {model}"), show_header=False)
    for name, value in (found.values | found.findings).items():
        table.add_row(name.replace("_", " "), escape(_shown(value)))
    out.print(table)
    out.print(f"written to {path}", soft_wrap=True, highlight=False, markup=False)


def _shown(value: Any) -> str:
    """A value for people, who find a number for each head of each layer in the profile."""
    is_table = isinstance(value, list) and value and isinstance(value[0], list) and len(value[0]) > 2
    return f"{len(value)} layers of {len(value[0])} heads" if is_table else str(value)


def _check_profile_file(file: Path) -> None:
    """Refuse, before any work, what no profile can be written to.

    Raises:
        OSError: it is a folder, or cannot have one.
        ValueError: there is a file that is no profile.
    """
    from vlmfix.models.profiles import Profile

    if file.is_dir():
        raise IsADirectoryError(f"{str(file)!r} is a folder; name a profile file in it")
    if file.exists():
        Profile.read(file)
    above = next(each for each in file.absolute().parents if each.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{str(above)!r} is no folder, so that {str(file)!r} cannot be in it")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"nothing can be written to {str(above)!r}; name another --output")
