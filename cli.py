"""The command line `vlmfix`: parses arguments, prints with Rich, calls the library."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.markup import escape
from rich.table import Column, Table
from typer.core import TyperGroup

import vlmfix
from evals.annotated import annotated_images
from evals.commands.run import evaluate, report
from evals.commands.score import score_app
from evals.data import demo_scene, render, write_coco
from vlmfix.console import (
    AllowMissingOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    err,
    load_model,
    out,
    parse_methods,
    progress_bar,
)
from vlmfix.decoding import plain_decoding, set_aside
from vlmfix.display import mark_differences, method_card, methods_markdown, suitability_table, thumbnail
from vlmfix.generation import decoding_under, open_images
from vlmfix.models.calibration import calibrate as find_values
from vlmfix.models.calibration import calibration_of, write_profile
from vlmfix.models.digest import weights_digest
from vlmfix.models.loading import DEFAULT_MODEL
from vlmfix.models.profiles import user_directory
from vlmfix.suitability import profile_values

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
BATCH_SIZE = 8


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


@app.callback()
def main() -> None:
    """Warnings, too, are one line on stderr."""
    warnings.showwarning = _print_warning


@app.command()
def generate(
    model: ModelOption = DEFAULT_MODEL,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Picture or folder of pictures; may be repeated. (default: demo scene)"),
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
    allow_missing: AllowMissingOption = False,
    save_maps: Annotated[
        Path | None, typer.Option(help="Folder for the maps and refined pictures of carve.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Answer a prompt about pictures, plainly or with methods."""
    chosen = parse_methods(method, set_ or [])
    if save_maps is not None and not any(isinstance(each, vlmfix.CARVE) for each in chosen):
        raise ValueError("--save-maps needs --method carve, which makes maps")
    if compare and not chosen:
        raise ValueError("--compare needs a --method to compare with plain decoding, such as --method var")
    sources = _sources(image)
    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:  # from the whole distribution, as the protocols of the harness do
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    refinements: list[vlmfix.Refinement] = []
    variants: dict[str, list[vlmfix.Method]]
    plain = "sampling" if temperature > 0 else "greedy"
    label = method if chosen else plain
    variants = {plain: [], label: chosen} if compare else {label: chosen}

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

    def decoding_of(applied: list[vlmfix.Method]) -> dict[str, Any]:
        wanted = decoding_under(applied, {"max_new_tokens": max_new_tokens, **sampling})
        return plain_decoding(loaded[0], wanted)

    results, failures, saved = [], [], []
    with progress_bar("answering", len(sources), quiet=json_ or len(sources) == 1) as advance:
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
            "method": label,
            "parameters": {each.name: each.parameters for each in chosen},
            "profile": profile_values(chosen, loaded[0]),
            "activity": {each.name: dataclasses.asdict(each.activity()) for each in chosen},
            "decoding": {name: decoding_of(applied) for name, applied in variants.items()},
            "generation_config_set_aside": set_aside(loaded[0]),
        }
        document = head | {"results": results, "failures": failures}
        print(json.dumps(document, ensure_ascii=False, indent=2, default=repr))
    if failures:
        reasons = "; ".join(failure["error"] for failure in failures[:3])
        raise ValueError(f"{len(failures)} of {len(sources)} pictures could not be read: {reasons}")


@app.command()
def methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Embedded model, folder or hub id: say which methods work on it, with which values and from "
            "which profile, or why not."
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """List the methods: what they change and where, what they cost and work with, where they come from."""
    if markdown and model is not None:
        raise ValueError(
            "--markdown prints the table of the README, which is of no --model; give one of them"
        )
    if markdown:
        print(methods_markdown())
        return
    if model is not None:
        loaded = load_model(model, device, dtype, allow_missing=allow_missing)
        out.print(suitability_table(*loaded, model))
        out.print(f"weights: {weights_digest(loaded[0])}", soft_wrap=True, highlight=False)
        return
    for kind, are_controls in (("method", False), ("control", True)):
        table = Table(kind, Column("what it does", ratio=1), show_lines=True)
        for name, cls in vlmfix.methods().items():
            if cls.card.is_control == are_controls:
                table.add_row(name, method_card(cls))
        out.print(table)


@app.command()
def calibrate(
    images: Annotated[
        Path,
        typer.Option(
            help="Folder with 20 to 50 ordinary pictures; for adhh, a COCO root or what 'vlmfix scenes' "
            "writes, with 100 to 150 annotated ones."
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[
        str, typer.Option(help="Method that needs the values: var, gift, adaptinfer, adhh.")
    ] = "var",
    output: Annotated[
        Path | None, typer.Option(help="Profile file to write. (default: where later runs look first)")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """Find what a method needs to know of a checkpoint that has no profile."""
    vlmfix.make_method(method)  # a wrong name shows before the model is loaded
    calibration_of(method)
    if output is None:
        user_directory()  # refused, if at all, before the work
    pictures: Sequence[Any]
    if method == "adhh":
        least, most = 100, 150
        pictures = annotated_images(images, most)
    else:
        least, most = 20, 50
        pictures = [path for path in _sources([images])[:most] if path is not None]
    if len(pictures) < least:
        warnings.warn(f"{len(pictures)} pictures; {least} to {most} give a firmer result", stacklevel=1)
    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    with progress_bar("reading", len(pictures)) as advance:
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
    with progress_bar("drawing", count) as advance:
        write_coco(output, count=count, seed=seed, progress=advance)
    out.print(f"{count} scenes in {output}", highlight=False)


app.command("eval")(evaluate)
app.command()(report)
app.add_typer(score_app, name="score")


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


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(f"[yellow]warning:[/] {escape(' '.join(str(message).split()))}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="vlmfix")
