"""What methods share that edit the residual stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ActsInStaticSteps, EditsStream, ReadsLastRowAgain
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import Edit, StaticEdits
from vlmfix.methods.base import Method
from vlmfix.models.directions import read_directions
from vlmfix.models.profiles import Profile
from vlmfix.models.structure import StreamSite


@dataclass(frozen=True, kw_only=True)
class StreamEdit(Method, EditsStream, ABC):
    """Base of the methods that edit the residual stream of sequences with an image."""

    @abstractmethod
    def edits_layer(self, layer: int) -> bool:
        """Whether it takes part in a layer."""

    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        return self.edits_layer(layer) and context.layout.has_image

    def edited_rows(self, context: DecodeContext, layer: int, states: Tensor) -> Tensor:
        """Those of `states`, the last ones, that it edits."""
        return states

    def with_edited_rows(self, context: DecodeContext, layer: int, states: Tensor, rows: Tensor) -> Tensor:
        """States `(batch, tokens, hidden)` with other last rows, see `edited`."""
        earlier = states[:, : states.shape[1] - rows.shape[1]]
        after = torch.cat([earlier, rows], dim=1) if earlier.shape[1] else rows
        return self.edited(context, layer, states, after)

    def edited(self, context: DecodeContext, layer: int, before: Tensor, after: Tensor) -> Tensor:
        """`after` where the method takes the sequence, else `before`; counts a site a layer and step.

        Args:
            before: `(batch, tokens, hidden)`.
            after: in the same form.
        """
        key = self, "takes all"
        takes = self.takes(context)
        if key not in context.state:  # the device is read once a run
            context.state[key] = bool(takes.all())
        context.count(self, layer, takes.long(), 1)
        if context.state[key]:
            return after
        return torch.where(takes.to(after.device)[:, None, None], after, before)


@dataclass(frozen=True, kw_only=True)
class NewRowEdit(StreamEdit, ReadsLastRowAgain, ABC):
    """Base of those that edit the last prompt token and new ones alone; what was read of the image stays."""

    keeps_prefix: ClassVar = True

    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        return super().acts_in_layer(context, layer) and not context.is_prefill

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return context.layout.has_image

    def edited_rows(self, context: DecodeContext, layer: int, states: Tensor) -> Tensor:
        return states[:, context.first_new_row(layer, states.shape[1]) :]


@dataclass(frozen=True, kw_only=True)
class StreamFormula(StreamEdit, ActsInStaticSteps, ABC):
    """Base of those whose edit is a formula of the states."""

    @abstractmethod
    def formula(self, context: DecodeContext, layer: int, device: torch.device) -> Edit:
        """From states `(batch, tokens, hidden)` to edited ones, and the size of the edit of the newest token,
        `(batch, 1)`, as a tuple of one."""

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        rows, edit = self.edited_rows(context, layer, states), self.formula(context, layer, states.device)
        after, (size,) = edit.function(rows, *edit.tensors, **edit.settings)
        context.measure(self, size=size)
        return self.with_edited_rows(context, layer, states, after.to(states.dtype))

    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> StaticEdits | None:
        if not self.acts_in_layer(context, layer):
            return None
        takes = self.takes(context)
        edit = self.formula(context, layer, takes.device)
        return StaticEdits(stream=edit, takes=takes, edited=takes.long(), sites=1, sizes=("size",))


def directions_file(
    method: str, given: str | None, config: PreTrainedConfig, profile: Profile | None, parameter: str
) -> str:
    """The file of the directions of a method, checked.

    Args:
        method: by name.
        given: the file that the user names; None: that of the profile.
        config: of the whole model.
        profile: of the checkpoint.
        parameter: of the profile that names the file.

    Raises:
        ValueError: there is none, or it is for another method or model.
    """
    path: Path | None = Path(given) if given is not None else None
    if path is None and profile is not None:
        path = profile.file(parameter)
    if path is None:
        raise ValueError(
            "no directions are known for this checkpoint; find them with 'vlmfix calibrate --model MODEL "
            f"--method {method} --images FOLDER', or name their file by directions="
        )
    read_directions(path, method, config)
    return str(path)


def check_file_name(name: str, value: Any) -> None:
    """Refuse what is no file name.

    Raises:
        ValueError: naming the parameter and the value.
    """
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{name} is {value!r}; it must be the name of a safetensors file")


def unit(vectors: Tensor) -> Tensor:
    """Vectors `(..., hidden)` of length 1, float32; 0 stays 0."""
    length: Tensor = vectors.float().norm(dim=-1, keepdim=True)
    return vectors / length.clamp_min(1e-12)


def steer(states: Tensor, shift: Tensor) -> Tensor:
    """Turn states towards a direction and keep their length (arXiv 2410.15778).

    Args:
        states: `(..., hidden)`.
        shift: added to the states of length 1, to be broadcast to `states`.

    Returns:
        Float32, of the shape of `states`; 0 stays 0.
    """
    states = states.float()
    turned: Tensor = unit(unit(states) + shift) * states.norm(dim=-1, keepdim=True)
    return turned


def angle(before: Tensor, after: Tensor) -> Tensor:
    """Degrees between states before and after, `(...)` of `(..., hidden)`."""
    cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    degrees: Tensor = torch.rad2deg(cosine.clamp(-1, 1).acos())
    return degrees
