"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlmfix.cli.completion import complete_models
from vlmfix.failures import printable
from vlmfix.methods.validation import check_temperature
from vlmfix.models.embedded import EMBEDDED


def given_path(text: str) -> Path:
    """The path that an option gives; "" would be the folder in which the command runs."""
    if not text or "\0" in text:
        raise typer.BadParameter(f"{printable(text)!r} is no path; name a file or folder")
    return Path(text)


def path_option(help: str, *names: str, **options: Any) -> Any:
    """An option that gives a path."""
    return typer.Option(*names, parser=given_path, help=help, **options)


def given_temperature(value: float) -> float:
    """The temperature that an option gives, as `check_temperature` allows."""
    try:
        check_temperature("the temperature", value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return value


def given_text(value: str | None) -> str | None:
    """The text that an option gives, if any; bytes that are not UTF-8 reach no tokenizer."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"character {error.start + 1} is not valid UTF-8; write it anew") from None
    return value


def sampling_of(temperature: float) -> dict[str, Any]:
    """Arguments of `model.generate`: greedy at 0, else from the whole distribution, as the protocols of the
    harness do."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


TokensOption = Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Length limit of an answer.")]
TemperatureOption = Annotated[
    float, typer.Option(callback=given_temperature, help="Sample at this temperature; 0 is greedy.")
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")]
ModelOption = Annotated[
    str,
    typer.Option(
        help=f"Embedded model ({', '.join(EMBEDDED)}), folder or hub id.",
        show_default=True,
        autocompletion=complete_models,
    ),
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
RECIPE = "Recipe file, or the name of a recipe: methods and decoding that go together on one checkpoint"
ForceOption = Annotated[
    bool, typer.Option("--force", help="Take a --recipe that is for other weights, with a warning.")
]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's.")]
TasksOption = Annotated[
    list[Path] | None,
    path_option("Folder with a folder for each benchmark of yours; repeatable.", "--tasks", is_eager=True),
]
AnswerKeyOption = Annotated[
    str | None,
    typer.Option("--answer-key", help="Key of the answer in its record.", show_default="that of the layout"),
]
IdKeyOption = Annotated[
    str | None,
    typer.Option(
        "--id-key", help="Key of the id by which answers are joined.", show_default="that of the layout"
    ),
]
LabelKeyOption = Annotated[
    str | None,
    typer.Option("--label-key", help="Key of what is right.", show_default="that of the layout"),
]
SampleOption = Annotated[
    int | None, typer.Option("--sample", min=1, help="Of several answers to one question take this one.")
]
StripPromptOption = Annotated[
    bool, typer.Option("--strip-prompt", help="Leave out a prompt that stands before the answer.")
]
