"""The command `vlmfix chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlmfix.cli.completion import complete_methods
from vlmfix.cli.options import (
    AllowMissingOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    TokensOption,
    given_text,
    path_option,
    sampling_of,
)
from vlmfix.methods.registry import GREEDY
from vlmfix.models.embedded import DEFAULT_MODEL


def chat(
    model: ModelOption = DEFAULT_MODEL,
    image: Annotated[
        list[Path] | None, path_option("Picture shown with the first question; may be repeated.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(callback=given_text, help="System message of the conversation.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Method by name (see 'vlmfix methods'), several as var+vhr, greedy, or auto.",
            autocompletion=complete_methods,
        ),
    ] = GREEDY,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Parameter KEY=VALUE, or METHOD.KEY=VALUE; repeatable."),
    ] = None,
    max_new_tokens: TokensOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """Chat about pictures in the terminal; /help there lists the commands."""
    from vlmfix.cli.chat_session import Chat
    from vlmfix.cli.loading import load_model

    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    decoding: dict[str, Any] = {"max_new_tokens": max_new_tokens, **sampling_of(temperature)}
    session = Chat(*loaded, decoding, seed, system or "")
    if method != GREEDY or set_:
        session.use(method, set_ or [])
    for picture in image or ():
        session.show_picture(str(picture))
    session.run()
