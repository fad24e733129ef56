"""The command line `vlmfix`: parses arguments, prints with Rich, calls the library."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

try:  # which takes seconds, and may meet a broken installation
    import torch
    import typer
    from PIL import Image
    from rich.markup import escape
    from rich.table import Column, Table

    import vlmfix
    from vlmfix.api import decoding_under
    from vlmfix.calibration.calibrate import calibrate as find_values
    from vlmfix.calibration.calibrate import calibration_of, write_profile
    from vlmfix.cli.display import (
        mark_differences,
        method_card,
        methods_markdown,
        suitability_table,
        thumbnail,
    )
    from vlmfix.cli.errors import OneLineErrors
    from vlmfix.cli.eval import evaluate, report
    from vlmfix.cli.options import (
        AllowMissingOption,
        DeviceOption,
        DtypeOption,
        ModelOption,
        given_temperature,
        given_text,
        load_model,
        out,
        parse_methods,
        path_option,
        print_json,
        print_warning,
        progress_bar,
    )
    from vlmfix.cli.score import score_app
    from vlmfix.evaluation.datasets import demo_scene, render, write_coco
    from vlmfix.evaluation.datasets.calibration_images import annotated_images
    from vlmfix.failures import failure_of, is_for_users, is_foreign, printable, words
    from vlmfix.inference.decoding import plain_decoding, set_aside
    from vlmfix.inference.pictures import IMAGE_SUFFIXES, ImageLike, open_images
    from vlmfix.methods.suitability import profile_values
    from vlmfix.models.digest import weights_digest
    from vlmfix.models.loading import DEFAULT_MODEL
    from vlmfix.models.profiles import Profile, user_directory
except KeyboardInterrupt:
    raise SystemExit(130) from None
except (ImportError, OSError) as error:  # OSError: of a shared library
    if os.environ.get("VLMFIX_DEBUG") or "--debug" in sys.argv:
        raise
    raise SystemExit(f"error: a package cannot be imported ({error}); install vlmfix again") from None

BATCH_SIZE = 8
MOST_TOKENS = 2**31 - 1
MOST_SCENES = 10**9
MOST_SEED = 2**63 - 1


class Answered(NamedTuple):
    """The answers about a picture by variant, and what CARVE found out of it."""

    texts: dict[str, str]
    refinements: list[vlmfix.Refinement]


app = typer.Typer(
    cls=OneLineErrors,
    help="Decoding-time hallucination mitigation for vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", envvar="VLMFIX_DEBUG", help="Show the traceback of an error; at any place of the line."
        ),
    ] = False,
) -> None:
    """Warnings, too, are one line on stderr."""
    group: Any = context.command
    group.debug = debug
    warnings.showwarning = print_warning


@app.command()
def generate(
    model: ModelOption = DEFAULT_MODEL,
    image: Annotated[
        list[Path] | None,
        path_option("Picture or folder of pictures; may be repeated. (default: demo scene)"),
    ] = None,
    prompt: Annotated[
        str, typer.Option(callback=given_text, help="What to ask about each picture.")
    ] = "Describe the image.",
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
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Length limit of an answer.")
    ] = 128,
    temperature: Annotated[
        float,
        typer.Option(callback=given_temperature, help="Sample at this temperature; 0 is greedy."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the sampling.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
    save_maps: Annotated[
        Path | None,
        path_option("Folder for the maps and refined pictures of carve."),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document and nothing else, also when it stops half way."),
    ] = False,
) -> None:
    """Answer a prompt about pictures, plainly or with methods."""
    chosen = parse_methods(method, set_ or [])
    if save_maps is not None and not any(isinstance(each, vlmfix.CARVE) for each in chosen):
        raise ValueError("--save-maps needs --method carve, which makes maps")
    if compare and not chosen:
        raise ValueError("--compare needs a --method to compare with plain decoding, such as --method var")
    if save_maps is not None:
        save_maps.mkdir(parents=True, exist_ok=True)  # what cannot be written shows before any work
    sources = _sources(image)
    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:  # from the whole distribution, as the protocols of the harness do
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    variants: dict[str, list[vlmfix.Method]]
    plain = "sampling" if temperature > 0 else "greedy"
    label = method if chosen else plain
    variants = {plain: [], label: chosen} if compare else {label: chosen}

    def answered(pictures: Sequence[Image.Image]) -> list[Answered]:
        """The answers to a batch, by variant, and what CARVE found out."""
        found = [Answered({}, []) for _ in pictures]
        for name, applied in variants.items():
            torch.manual_seed(seed)
            refinements: list[vlmfix.Refinement] = []
            texts = vlmfix.generate(
                *loaded,
                list(pictures),
                prompt,
                applied,
                max_new_tokens=max_new_tokens,
                on_refinement=refinements.append,
                **sampling,
            )
            for index, each in enumerate(found):
                each.texts[name] = texts[index]
                each.refinements.extend(refinements[index : index + 1])
        return found

    def decoding_of(applied: list[vlmfix.Method]) -> dict[str, Any]:
        wanted = decoding_under(applied, {"max_new_tokens": max_new_tokens, **sampling})
        return plain_decoding(loaded[0], wanted)

    results: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    saved: list[Path] = []

    def document(stopped_by: BaseException | None = None) -> dict[str, Any]:
        head = {
            "model": model,
            "prompt": prompt,
            "method": label,
            "parameters": {each.name: each.parameters for each in chosen},
            "profile": profile_values(chosen, loaded[0]),
            "activity": {each.name: dataclasses.asdict(each.edit_stats()) for each in chosen},
            "decoding": {name: decoding_of(applied) for name, applied in variants.items()},
            "generation_config_set_aside": set_aside(loaded[0]),
        }
        error = {} if stopped_by is None else {"error": failure_of(stopped_by).message}
        return head | {"results": results, "failures": failures} | error

    try:
        with progress_bar("answering", len(sources), quiet=json_ or len(sources) == 1) as advance:
            for start in range(0, len(sources), BATCH_SIZE):
                batch = sources[start : start + BATCH_SIZE]
                for source, picture, found in _each_or_alone(batch, answered):
                    if isinstance(found, Exception):
                        failures.append({"image": _name(source), "error": words(found)})
                        continue
                    results.append({"image": _name(source), "answers": found.texts})
                    if save_maps is not None:
                        stem = f"{len(results):04}-{Path(_name(source)).stem.replace(' ', '-')}"
                        saved += found.refinements[0].save(save_maps, stem)
                    if not json_:
                        assert picture is not None
                        _show(source, picture, found.texts, alone=len(sources) == 1)
                advance(len(batch))
    except (Exception, KeyboardInterrupt) as error:
        if json_:
            print_json(document(error))
        raise
    if json_:
        print_json(document())
    elif save_maps is not None:
        out.print(f"{len(saved)} pictures in {save_maps}", soft_wrap=True, highlight=False, markup=False)
    if failures:
        reasons = "; ".join(failure["error"] for failure in failures[:3])
        raise ValueError(
            f"{len(failures)} of {len(sources)} pictures could not be read or answered: {reasons}"
        )


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
    if model is None and (device, dtype, allow_missing) != ("auto", "auto", False):
        raise ValueError("--device, --dtype and --allow-missing are of a --model; name one")
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
        for name, cls in vlmfix.list_methods().items():
            if cls.info.is_baseline == are_controls:
                table.add_row(name, method_card(cls))
        out.print(table)


@app.command()
def calibrate(
    images: Annotated[
        Path,
        path_option(
            "Folder with 20 to 50 ordinary pictures; for adhh, a COCO root or what 'vlmfix scenes' "
            "writes, with 100 to 150 annotated ones.",
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[
        str, typer.Option(help="Method that needs the values: var, gift, adaptinfer, adhh.")
    ] = "var",
    output: Annotated[
        Path | None,
        path_option("Profile file to write. (default: where later runs look first)"),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """Find what a method needs to know of a checkpoint that has no profile."""
    vlmfix.make_method(method)  # a wrong name shows before the model is loaded
    calibration_of(method)
    if output is not None:
        _check_profile_file(output)
    if output is None:
        user_directory()  # refused, if at all, before the work
    pictures: Sequence[Any]
    if method == "adhh":
        least, most = 100, 150
        pictures = [each for each in annotated_images(images, most) if _is_readable(each.image)]
    else:
        least, most = 20, 50
        pictures = list(itertools.islice(filter(_is_readable, _sources([images])), most))
    if not pictures:
        raise ValueError(f"no picture in {str(images)!r} can be read; give others")
    if len(pictures) < least:
        warnings.warn(f"{len(pictures)} pictures; {least} to {most} give a firmer result", stacklevel=1)
    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    with progress_bar("reading", len(pictures)) as advance:
        found = find_values(method, *loaded, pictures, progress=advance)
    path = write_profile(loaded[0], found, model, output)
    table = Table(title=escape(f"{method} on {model}"), show_header=False)
    for name, value in (found.values | found.findings).items():
        table.add_row(name.replace("_", " "), escape(str(value)))
    out.print(table)
    out.print(f"written to {path}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def scenes(
    output: Annotated[Path, path_option("New folder for the data set.")],
    count: Annotated[int, typer.Option(min=1, max=MOST_SCENES, help="Number of scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Scenes with the same seed are the same.")] = 0,
) -> None:
    """Write a synthetic data set in COCO format: images, instances, captions, questions."""
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{str(output)!r} is there already; name a new folder")
    with progress_bar("drawing", count) as advance:
        write_coco(output, count=count, seed=seed, progress=advance)
    out.print(f"{count} scenes in {output}", soft_wrap=True, highlight=False, markup=False)


app.command("eval")(evaluate)
app.command()(report)
app.add_typer(score_app, name="score")


def _is_readable(picture: ImageLike | None) -> bool:
    """Whether a picture can be opened; warns if not."""
    try:
        open_images(_picture(None) if picture is None else picture)
    except (OSError, ValueError) as error:
        warnings.warn(f"left out: {words(error)}", stacklevel=2)
        return False
    return True


def _check_profile_file(file: Path) -> None:
    """Refuse, before any work, what no profile can be written to.

    Raises:
        OSError: it is a folder, or cannot have one.
        ValueError: there is a file that is no profile.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{str(file)!r} is a folder; name a profile file in it")
    if file.exists():
        Profile.read(file)
    file.parent.mkdir(parents=True, exist_ok=True)


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


def _each_or_alone(
    batch: Sequence[Path | None], answered: Callable[[Sequence[Image.Image]], list[Answered]]
) -> Iterator[tuple[Path | None, Image.Image | None, Answered | Exception]]:
    """The answers about each picture of a batch, or why there are none: one cannot spoil those of others."""
    opened: list[tuple[Path | None, Image.Image]] = []
    for source in batch:
        try:
            opened.append((source, open_images(_picture(source))[0]))
        except (OSError, ValueError) as error:
            yield source, None, error
    found: list[Answered | Exception] = []
    try:
        found += answered([picture for _, picture in opened]) if opened else []
    except ValueError as error:  # a picture that the model cannot take, such as one of a single line
        if len(opened) < 2 or not (is_for_users(error) or is_foreign(error)):
            raise
        for _, picture in opened:
            try:
                found += answered([picture])
            except ValueError as alone:
                found.append(alone)
        if len({words(each) if isinstance(each, Exception) else None for each in found}) == 1:
            raise  # it was not the picture
    for (source, picture), each in zip(opened, found, strict=True):
        yield source, picture, each


def _picture(source: Path | None) -> Path | Image.Image:
    return render(demo_scene()) if source is None else source


def _name(source: Path | None) -> str:
    return "demo scene" if source is None else printable(str(source))


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
    table = Table(*(Column(name, ratio=1) for name in answers), title=escape(_name(source)), expand=True)
    table.add_row(*mark_differences(*answers.values()))
    out.print(table)


def run() -> None:
    """Run the command line on the arguments of the process."""
    app(prog_name="vlmfix")
