"""The command `vlmfix serve`."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Annotated

import typer

from vlmfix.cli.options import AllowMissingOption, DeviceOption, DtypeOption, ModelOption, path_option
from vlmfix.models.embedded import DEFAULT_MODEL, EMBEDDED


def given_seconds(value: float) -> float:
    """A number of seconds that an option gives."""
    if not math.isfinite(value) or value <= 0:
        raise typer.BadParameter(f"{value:g} is no time; give seconds, above 0")
    return value


def given_key(value: str | None) -> str | None:
    """The API key that an option gives, if any, as a header can carry it."""
    if value is not None and (not value or not value.isascii() or not value.isprintable() or " " in value):
        raise typer.BadParameter("an API key has one or more printable ASCII characters without white space")
    return value


def serve(
    model: ModelOption = DEFAULT_MODEL,
    recipe: Annotated[
        list[Path] | None,
        path_option("Recipe file that requests may name, beside those that 'auto' knows; repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="VLMFIX_API_KEY",
            show_envvar=True,
            callback=given_key,
            help="Key that requests must bring. (default: none)",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host from which pictures are fetched, such as images.example.org, or HOST:PORT; "
            "repeatable. Those with private addresses are always refused."
        ),
    ] = None,
    allow_folder: Annotated[
        list[Path] | None, path_option("Folder whose pictures file addresses may name; repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Answers decoded together.")] = 16,
    parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Batches decoded at the same time; the weights are shared.")
    ] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Tokens of an answer.")] = 4096,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of the body of a request.")] = 2**25,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of the pictures of a request.")] = 2**25,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in the server at once.")] = 256,
    timeout: Annotated[
        float, typer.Option(callback=given_seconds, help="Seconds for a request, waiting included.")
    ] = 300.0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """Serve a model and all methods by the API of OpenAI, until a signal stops it.

    A request names the method after the model, such as "tiny-llava:var+vcd".
    """
    try:
        from vlmfix.serve.server import bound_socket, run
    except ImportError as error:
        raise ImportError(
            f"vlmfix serve needs {error.name}, which is not installed; pip install 'vlmfix[serve]'"
        ) from error
    from vlmfix.cli.console import err
    from vlmfix.cli.loading import load_model
    from vlmfix.engine.stats import InactiveMethodWarning
    from vlmfix.serve.addresses import Allowed
    from vlmfix.serve.app import create_app
    from vlmfix.serve.limits import Limits
    from vlmfix.serve.naming import Catalogue
    from vlmfix.serve.service import Service

    for folder in allow_folder or ():
        if not folder.is_dir():
            raise FileNotFoundError(f"--allow-folder {folder} is no folder; name one with pictures")
    with bound_socket(host, port) as listener:  # before the model, which takes long
        loaded = load_model(model, device, dtype, allow_missing=allow_missing)
        is_folder = model not in EMBEDDED and Path(model).is_dir()
        name = Path(model).resolve().name if is_folder else model
        limits = Limits(
            bytes=max_bytes,
            pixels=max_pixels,
            tokens=max_tokens,
            requests=max_requests,
            seconds=timeout,
            batch_size=batch_size,
            parallel=parallel,
        )
        catalogue = Catalogue(*loaded, name, recipe or ())
        allowed = Allowed(frozenset(each.lower() for each in allow_host or ()), tuple(allow_folder or ()))
        service = Service(*loaded, catalogue, limits, allowed)
        app = create_app(service, api_key=api_key)
        address, taken = listener.getsockname()[:2]
        place = f"[{address}]" if ":" in address else address
        err.print(
            f"{name} at http://{place}:{taken}/v1" + ("" if api_key else ", without an API key"),
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        warnings.simplefilter("ignore", InactiveMethodWarning)  # responses say what methods did
        run(app, service, listener, timeout)
