"""The command `vlmfix explain`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmfix.cli.completion import complete_methods
from vlmfix.cli.console import err, out, progress_bar
from vlmfix.cli.options import (
    AllowMissingOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    given_text,
    path_option,
)
from vlmfix.failures import words
from vlmfix.methods.registry import GREEDY
from vlmfix.models.embedded import DEFAULT_MODEL, EMBEDDED

if TYPE_CHECKING:
    from vlmfix.explanation.objects import PictureObjects
    from vlmfix.explanation.survey import Survey

PROMPT = "Describe the image."
_DEMO_METHOD = "var"
_PICTURES = 20


def explain(
    model: ModelOption = DEFAULT_MODEL,
    image: Annotated[
        Path | None, path_option("Picture. (default: demo scene, whose objects are known)")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(callback=given_text, help=f"What to ask. (default: {PROMPT})")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method by name, several as var+vhr: its answer beside the plain one. (default: none; var "
            "for the demo scene)",
            autocompletion=complete_methods,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Parameter KEY=VALUE, of one method among several METHOD.KEY=VALUE; repeatable."
        ),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(callback=given_text, help="Explain this text in the place of the model's own answer."),
    ] = None,
    answer_token: Annotated[
        str | None,
        typer.Option(
            callback=given_text,
            help="Word to explain in full (word#2: its second mention), or index of a token. (default: an "
            "object that is not there, if known, else the content word that the picture adds most to)",
        ),
    ] = None,
    instances: Annotated[
        Path | None,
        path_option("COCO instances file that lists the picture: marks invented objects, and judges maps."),
    ] = None,
    maps: Annotated[
        str | None,
        typer.Option(help="Maps that have to be there: band, rollout, contrast, encoder, joined by commas."),
    ] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Test the maps by deletion and insertion, too.")
    ] = False,
    data: Annotated[
        Path | None,
        path_option(
            "In the place of --image: folder of annotated pictures (a COCO root, or what 'vlmfix scenes' "
            "writes), over which cut paths, maps and the profile's values are averaged."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pictures of --data, at most. (default: 20)")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Length limit of an answer.")] = 64,
    output: Annotated[Path | None, path_option("Page to write. (default: explain.html)")] = None,
    json_: Annotated[Path | None, path_option("File for the numbers, as JSON.", "--json")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """Show where a model looked, word by word, and where a method changed its mind, as one page."""
    given = {
        "--image": image,
        "--method": method,
        "--set": set_,
        "--answer": answer,
        "--answer-token": answer_token,
        "--instances": instances,
        "--maps": maps,
        "--faithfulness": faithfulness or None,
    }
    if data is not None and (clashing := [name for name, value in given.items() if value]):
        raise ValueError(
            f"--data averages over pictures with the model's own answers; leave {clashing[0]} out"
        )
    if limit is not None and data is None:
        raise ValueError(f"--limit {limit} bounds the pictures of --data; give a folder, or leave it out")
    if instances is not None and image is None:
        raise ValueError("--instances says what is in a picture; name the picture with --image")
    is_demo = all(each is None for each in (image, data, prompt, method, answer))
    if is_demo:
        method = _DEMO_METHOD
    from vlmfix.methods.grammar import make_methods, parse_settings

    [parsed] = parse_settings([method or GREEDY], set_ or [])
    chosen = make_methods(parsed)
    _use_one_thread(model)
    output = Path("explain.html") if output is None else output
    for path in (output, json_):
        if path is not None:
            _check_file(path)
    if data is not None:
        _survey(
            model,
            data,
            limit or _PICTURES,
            prompt or PROMPT,
            max_new_tokens,
            output,
            json_,
            (device, dtype, allow_missing),
        )
        return
    from vlmfix.atomic import write_text
    from vlmfix.cli.loading import load_model
    from vlmfix.cli.pictures import picture_name
    from vlmfix.evaluation.datasets import demo_scene, render
    from vlmfix.explanation.explain import explain as made
    from vlmfix.explanation.page import sentences
    from vlmfix.inference.pictures import open_images

    [picture] = [render(demo_scene())] if image is None else open_images(image)
    objects = _objects(image, instances)
    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    with err.status("explaining") as status:
        explanation = made(
            *loaded,
            picture,
            PROMPT if prompt is None else prompt,
            chosen or None,
            answer=answer,
            word=answer_token,
            objects=objects,
            maps=[each.strip() for each in (maps or "").split(",") if each.strip()],
            faithfulness=faithfulness or is_demo,
            max_new_tokens=max_new_tokens,
            name=model,
            progress=status.update,
        )
        status.update("writing the page")
        write_text(output, explanation.html())
    if json_ is not None:
        write_text(json_, explanation.json())
    _say(f"{picture_name(image)}: {explanation.plain.text}")
    if explanation.method is not None:
        _say(f"under {explanation.method_name}: {explanation.method.text}")
    for sentence in sentences(explanation):
        _say(f"- {sentence}")
    _say(f"written to {output}")


def _use_one_thread(model: str) -> None:
    """Tiny models gain nothing from more threads, which wait for each other where cores are busy."""
    if model in EMBEDDED and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


def _survey(
    model: str,
    data: Path,
    limit: int,
    prompt: str,
    max_new_tokens: int,
    output: Path,
    json_: Path | None,
    loading: tuple[str, str, bool],
) -> None:
    """Explain annotated pictures, and write what they have in common."""
    from vlmfix.atomic import write_text
    from vlmfix.cli.loading import load_model
    from vlmfix.evaluation.tasks.registry import task_module
    from vlmfix.explanation.explain import explain as made
    from vlmfix.explanation.survey import light, survey
    from vlmfix.explanation.survey_page import survey_json, survey_page
    from vlmfix.models.profiles import find_profile

    module: Any = task_module("chair", "explained_objects")
    pictures: Sequence[tuple[Path, PictureObjects]] = module.objects_in(data, limit)
    device, dtype, allow_missing = loading
    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    explanations = []
    with progress_bar("explaining", len(pictures)) as advance:
        for path, objects in pictures:
            try:
                found = made(
                    *loaded, path, prompt, objects=objects, max_new_tokens=max_new_tokens, name=model
                )
                explanations.append(light(found))
            except (OSError, ValueError) as error:
                warnings.warn(f"left out: {path.name}: {words(error)}", stacklevel=1)
            advance(1)
    profile = find_profile(loaded[0])
    found_in_common = survey(explanations, {} if profile is None else profile.values)
    write_text(output, survey_page(found_in_common))
    if json_ is not None:
        write_text(json_, survey_json(found_in_common))
    _print(found_in_common)
    _say(f"written to {output}")


def _print(found: Survey) -> None:
    """The means and the verdicts as tables."""
    from rich.markup import escape
    from rich.table import Column, Table

    from vlmfix.explanation.survey_page import estimate_text

    kinds = [f"{kind} ({found.words[kind]})" for kind in found.words]
    table = Table(
        "nats, means over words that name objects", *kinds, title=escape(f"{found.pictures} pictures")
    )
    for name, row in found.table.items():
        table.add_row(name.replace("_", " "), *(estimate_text(row.get(kind)) for kind in found.words))
    verdicts = Table("value of the profile", "verdict", Column("because", ratio=1))
    for each in found.findings:
        verdicts.add_row(f"{each.parameter} {escape(each.value)}", each.verdict, escape(each.reason))
    out.print(table)
    out.print(verdicts)


def _objects(image: Path | None, instances: Path | None) -> PictureObjects | None:
    """What is in the picture; None: nobody says."""
    from vlmfix.evaluation.tasks.registry import task_module

    if image is not None and instances is None:
        return None
    module: Any = task_module("chair", "explained_objects")
    found: PictureObjects = module.demo_objects() if image is None else module.objects_of(image, instances)
    return found


def _check_file(path: Path) -> None:
    """Refuse, before any work, a file that cannot be written; its folder is made.

    Raises:
        OSError: it cannot.
    """
    if path.is_dir():
        raise IsADirectoryError(
            f"{str(path)!r} is a folder; name a file in it, such as {str(path / 'explain.html')!r}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.writable")
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise type(error)(
            f"nothing can be written to {str(path.parent)!r} ({words(error)}); name another file"
        ) from error


def _say(text: str) -> None:
    out.print(text, soft_wrap=True, highlight=False, markup=False)
