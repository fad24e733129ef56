"""The command line `vlmfix`: parses arguments, prints with Rich, calls the library."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging as transformers_logging
from typer.core import TyperGroup

import vlmfix
from evals.data import demo_scene, render, write_coco
from vlmfix.display import mark_differences, method_card, methods_markdown, thumbnail
from vlmfix.generation import open_images
from vlmfix.models.calibration import calibrate as find_values
from vlmfix.models.calibration import calibration_of, write_profile
from vlmfix.models.loading import DEFAULT_MODEL, EMBEDDED

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
BATCH_SIZE = 8

out = Console()
err = Console(stderr=True)


class OneLineErrors(TyperGroup):
    """Every error that a user can mend is one line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message"):  # of the parser: a wrong option or argument
                message = error.format_message()
            elif isinstance(error, ValueError | OSError | ImportError | vlmfix.UnsupportedError):
                message = str(error)
            elif isinstance(error, torch.OutOfMemoryError):
                message = f"{error}; try --dtype bfloat16, a smaller model or --device cpu"
            else:
                raise
        err.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)
        raise SystemExit(2)


app = typer.Typer(
    cls=OneLineErrors,
    help="Decoding-time hallucination mitigation for vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str, typer.Option(help=f"Embedded model ({', '.join(EMBEDDED)}), folder or hub id.", show_default=True)
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: over all GPUs, if any.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's.")]


@app.callback()
def main() -> None:
    """Warnings, too, are one line on stderr."""
    warnings.showwarning = _print_warning


@app.command()
def generate(
    model: ModelOption = DEFAULT_MODEL,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Picture or folder of pictures; may be repeated. [default: demo scene]"),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What to ask about each picture.")] = "Describe the image.",
    method: Annotated[
        str, typer.Option(help="Method by name (see 'vlmfix methods'), several as var+vhr, or greedy.")
    ] = "greedy",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Parameter KEY=VALUE, of one method among several METHOD.KEY=VALUE; repeatable."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show plain decoding beside the method.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="Sample at this temperature; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    save_maps: Annotated[
        Path | None, typer.Option(help="Folder for the maps and refined pictures of carve.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Answer a prompt about pictures, plainly or with methods."""
    chosen = _methods(method, set_ or [])
    if save_maps is not None and not any(isinstance(each, vlmfix.CARVE) for each in chosen):
        raise ValueError("--save-maps needs --method carve, which makes maps")
    if compare and not chosen:
        raise ValueError("--compare needs a --method to compare with plain decoding, such as --method var")
    sources = _sources(image)
    loaded = _load(model, device, dtype)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    refinements: list[vlmfix.Refinement] = []
    variants: dict[str, list[vlmfix.Method]]
    variants = {"greedy": [], method: chosen} if compare else {method: chosen}

    def answers(pictures: list[Image.Image], applied: list[vlmfix.Method]) -> list[str]:
        torch.manual_seed(seed)
        return vlmfix.generate(
            *loaded,
            pictures,
            prompt,
            applied,
            max_new_tokens=max_new_tokens,
            on_refinement=refinements.append,
            **sampling,
        )

    results, failures, saved = [], [], []
    with _progress("answering", len(sources), quiet=json_ or len(sources) == 1) as advance:
        for start in range(0, len(sources), BATCH_SIZE):
            batch = sources[start : start + BATCH_SIZE]
            readable: list[tuple[Path | None, Image.Image]] = []
            for source in batch:
                try:
                    readable.append((source, open_images(_picture(source))[0]))
                except (OSError, ValueError) as error:
                    failures.append({"image": _name(source), "error": str(error)})
            refinements.clear()
            texts = {
                name: answers([picture for _, picture in readable], applied)
                for name, applied in variants.items()
            }
            for index, (source, picture) in enumerate(readable):
                result = {name: each[index] for name, each in texts.items()}
                results.append({"image": _name(source), "answers": result})
                if save_maps is not None:
                    stem = f"{len(results):04}-{Path(_name(source)).stem.replace(' ', '-')}"
                    saved += refinements[index].save(save_maps, stem)
                if not json_:
                    _show(source, picture, result, alone=len(sources) == 1)
            advance(len(batch))
    if save_maps is not None and not json_:
        out.print(f"{len(saved)} pictures in {save_maps}", soft_wrap=True, highlight=False)
    if json_:
        head = {
            "model": model,
            "prompt": prompt,
            "method": method,
            "parameters": {_short(each): each.parameters for each in chosen},
            "activity": {_short(each): dataclasses.asdict(each.activity()) for each in chosen},
        }
        document = head | {"results": results, "failures": failures}
        print(json.dumps(document, ensure_ascii=False, indent=2, default=repr))
    if failures:
        reasons = "; ".join(failure["error"] for failure in failures[:3])
        raise ValueError(f"{len(failures)} of {len(sources)} pictures could not be read: {reasons}")


@app.command()
def methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
) -> None:
    """List the methods: what they change and where, what they cost and work with, where they come from."""
    if markdown:
        print(methods_markdown())
        return
    table = Table("method", Column("what it does", ratio=1), show_lines=True)
    for name, cls in vlmfix.methods().items():
        table.add_row(name, method_card(cls))
    out.print(table)


@app.command()
def calibrate(
    images: Annotated[Path, typer.Option(help="Folder with 20 to 50 ordinary pictures.")],
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="Method that needs the values: var, gift, adaptinfer.")] = "var",
    output: Annotated[
        Path | None, typer.Option(help="Profile file to write. [default: where later runs look first]")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Find what a method needs to know of a checkpoint that has no profile."""
    vlmfix.make_method(method)  # a wrong name shows before the model is loaded
    calibration_of(method)
    paths = _sources([images])[:50]
    if len(paths) < 20:
        warnings.warn(f"{len(paths)} pictures; 20 to 50 give a firmer result", stacklevel=1)
    loaded = _load(model, device, dtype)
    pictures = [path for path in paths if path is not None]
    with _progress("reading", len(paths)) as advance:
        found = find_values(method, *loaded, pictures, progress=advance)
    path = write_profile(loaded[0], found, model, output)
    table = Table(title=f"{method} on {model}", show_header=False)
    for name, value in (found.values | found.findings).items():
        table.add_row(name.replace("_", " "), str(value))
    out.print(table)
    out.print(f"written to {path}", soft_wrap=True, highlight=False)


@app.command()
def scenes(
    output: Annotated[Path, typer.Option(help="New folder for the data set.")],
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 100,
    seed: Annotated[int, typer.Option(help="Scenes with the same seed are the same.")] = 0,
) -> None:
    """Write a synthetic data set in COCO format: images, instances, captions, questions."""
    with _progress("drawing", count) as advance:
        write_coco(output, count=count, seed=seed, progress=advance)
    out.print(f"{count} scenes in {output}", highlight=False)


def _methods(names: str, settings: Iterable[str]) -> list[vlmfix.Method]:
    """The methods that `a+b` names, with their parameters; none for greedy."""
    chosen = [] if names == "greedy" else names.split("+")
    parameters: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for key, value in map(_setting, settings):
        owner, dot, parameter = key.rpartition(".")
        if not chosen:
            raise ValueError(f"greedy has no parameters, but --set gives {key}; name a --method")
        if not dot and len(chosen) > 1:
            raise ValueError(f"--set {key} may belong to any of {names}; write {chosen[0]}.{key}")
        if dot and owner not in parameters:
            raise ValueError(f"--set {key} is of a method that is not in --method {names}")
        parameters[owner or chosen[0]][parameter] = value
    return [vlmfix.make_method(name, **parameters[name]) for name in chosen]


def _short(method: vlmfix.Method) -> str:
    return type(method).__name__.lower()


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"--set {text!r} is not KEY=VALUE, such as --set moved_fraction=0.6")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(
            f"--set {text!r}: the value is not readable; write numbers, true/false or [1, 2]"
        ) from error


def _sources(given: list[Path] | None) -> list[Path | None]:
    """The pictures to answer about; None is the demo scene."""
    if not given:
        return [None]
    found: list[Path | None] = []
    for path in given:
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(f"no pictures in {str(path)!r} ({', '.join(sorted(IMAGE_SUFFIXES))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no image file or folder {str(path)!r}; check the path")
    return found


def _picture(source: Path | None) -> Path | Image.Image:
    return render(demo_scene()) if source is None else source


def _name(source: Path | None) -> str:
    return "demo scene" if source is None else str(source)


def _load(name: str, device: str, dtype: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    if name in EMBEDDED or not err.is_terminal:
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return vlmfix.load(name, dtype=dtype, device_map=_device_map(device))


def _device_map(device: str) -> str | None:
    """What transformers calls `device`; None is the CPU."""
    if device == "auto":
        return "auto" if torch.cuda.is_available() else None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} is not available here; use cpu, cuda, cuda:1 or auto") from error
    return None if device == "cpu" else device


def _show(source: Path | None, picture: Image.Image, answers: dict[str, str], *, alone: bool) -> None:
    """One answer as text; two side by side with the differing words marked."""
    if alone and out.is_terminal:
        out.print(thumbnail(picture))
    if len(answers) == 1:
        text = next(iter(answers.values()))
        out.print(
            text if alone else f"{_name(source)}: {text}", soft_wrap=True, highlight=False, markup=False
        )
        return
    table = Table(*(Column(name, ratio=1) for name in answers), title=_name(source), expand=True)
    table.add_row(*mark_differences(*answers.values()))
    out.print(table)


@contextmanager
def _progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
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


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(f"[yellow]warning:[/] {escape(' '.join(str(message).split()))}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="vlmfix")
