"""What was found or trained for the layers of a checkpoint, such as directions, in safetensors files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.atomic import beside


def write_directions(
    path: Path, method: str, config: PreTrainedConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Write directions, or what else there is for layers, with what they are for.

    Args:
        path: the file; it is either whole or as it was.
        method: by name.
        config: of the whole model.
        tensors: by name, float32.
    """
    partial = beside(path)
    try:
        owned = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
        partial.write_bytes(save(owned, metadata=_of(method, config)))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_directions(
    path: str | Path,
    method: str,
    config: PreTrainedConfig,
    *,
    what: str = "directions",
    made_by: str | None = None,
) -> dict[str, Tensor]:
    """Read what `write_directions` wrote; kept in memory until the file changes.

    Args:
        path: the file.
        method: by name.
        config: of the whole model.
        what: they are, for messages.
        made_by: the command that makes such a file; None: the calibration of the method.

    Raises:
        ValueError: there is no such file, or it is for another method or model, whose type it need not name.
    """
    path = Path(path).expanduser()
    made_by = made_by or f"vlmfix calibrate --method {method}"
    try:
        state = path.stat()
        metadata, tensors = _read(path, (state.st_mtime_ns, state.st_size))
    except FileNotFoundError:
        raise ValueError(f"there is no file {str(path)!r}; make it by '{made_by}'") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}); make it by '{made_by}'") from error
    if "method" not in metadata:
        raise ValueError(f"{str(path)!r} is no file of {what} of vlmfix; make one by '{made_by}'")
    for name, wanted in _of(method, config).items():
        if metadata.get(name) != wanted and (name in metadata or name != "model_type"):
            raise ValueError(
                f"{str(path)!r} is for {name.replace('_', ' ')} {metadata.get(name)!r}, and not {wanted!r}; "
                f"make one for this model by '{made_by}'"
            )
    return dict(tensors)


@functools.lru_cache(maxsize=8)
def _read(path: Path, state: tuple[int, int]) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _of(method: str, config: PreTrainedConfig) -> dict[str, str]:
    text = config.get_text_config()
    return {
        "method": method,
        "model_type": config.model_type,
        "num_hidden_layers": str(text.num_hidden_layers),
        "hidden_size": str(text.hidden_size),
    }
