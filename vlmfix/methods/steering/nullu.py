"""Nullu: a subspace of hallucinating answers, removed from what feed-forward parts add."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import Edit
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import fitted_layers, layer_range
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import OneOf
from vlmfix.methods.steering.base import StreamFormula, check_file_name, directions_file
from vlmfix.methods.validation import check_whole
from vlmfix.models.directions import read_directions
from vlmfix.models.profiles import Profile

GREATEST_RANK = 16


@register_method("nullu")
@dataclass(frozen=True, kw_only=True)
class Nullu(StreamFormula):
    """Nullu (arXiv 2412.13817): takes from what the feed-forward parts of deep layers add the main
    differences between truthful and hallucinating answers.

    The paper edits weights; the same is done here to what they give, so that weights stay, quantised and
    shared ones too. It holds for all tokens, with or without an image, but not for prompts that other methods
    read beside them. To steer as well, attach the steering method after it. The subspaces belong to a
    checkpoint: `vlmfix calibrate --method nullu` finds them from annotated pictures.

    Args:
        rank: dimensions that are removed, 0 to 16; 0 leaves the model as it is.
        layers: first edited layer and the one after the last, 0-based; None: 16 to 31 of 32, at the same
            depth.
        directions: file of the subspaces; None: that of the checkpoint's profile.
    """

    rank: int = 4
    layers: tuple[int, int] | None = None
    directions: str | None = None

    info: ClassVar = MethodInfo(
        stage="steering",
        changes="what feed-forward parts add, without a subspace of hallucinating answers",
        where="all rows; layers 16 to 31 of 32",
        forwards=1.0,
        provenance="released code",
        paper="2412.13817",
    )
    identity_parameters: ClassVar = {"rank": 0}
    needs_image: ClassVar = False
    parameter_files: ClassVar[Sequence[str]] = ("directions",)
    stream_sites: ClassVar = ("feed_forward",)
    search_space: ClassVar = {"rank": OneOf((1, 2, 4, 8))}

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 0, GREATEST_RANK)
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_range(self.layers, "layers"))
        check_file_name("directions", self.directions)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        layers = fitted_layers(self.layers, (16, 32), config)
        file = directions_file(self.name, self.directions, config, profile, "nullu_directions")
        found = read_directions(file, self.name, config)["subspaces"].shape[1]
        if found < self.rank:
            raise ValueError(
                f"rank is {self.rank}, and {file!r} has subspaces of {found} dimensions; use up to {found}"
            )
        return dataclasses.replace(self, layers=layers, directions=file)

    def subspaces(self, config: PreTrainedConfig) -> Tensor:
        """Those of all layers, `(layers, rank or more, hidden)`."""
        assert self.directions is not None
        return read_directions(self.directions, Nullu.name, config)["subspaces"]

    def edits_layer(self, layer: int) -> bool:
        assert self.layers is not None
        return self.layers[0] <= layer < self.layers[1]

    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        return self.edits_layer(layer)

    def formula(self, context: DecodeContext, layer: int, device: torch.device) -> Edit:
        key = self, layer
        if key not in context.state:
            assert context.config is not None
            found = self.subspaces(context.config)
            context.state[key] = found[layer, : self.rank].T.to(device)[None]  # of all sequences
        return Edit(_removed, (context.state[key][0],))

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "share of the energy of what is added that is removed"}


def _removed(states: Tensor, subspace: Tensor) -> tuple[Tensor, tuple[Tensor]]:
    """States without their part in a subspace, and the share of the energy of the newest that this takes."""
    newest = states[:, -1:].float()
    share = (newest @ subspace).square().sum(dim=-1) / newest.square().sum(dim=-1).clamp_min(1e-12)
    return remove_subspace(states, subspace), (share,)


def remove_subspace(states: Tensor, subspace: Tensor) -> Tensor:
    """States without their part in a subspace (arXiv 2412.13817).

    Args:
        states: `(..., hidden)`.
        subspace: orthonormal, `(hidden, rank)`.

    Returns:
        Float32, of the shape of `states`.
    """
    states = states.float()
    return states - (states @ subspace) @ subspace.T


def difference_subspace(differences: Tensor, rank: int) -> Tensor:
    """Main directions of differences, not centred (arXiv 2412.13817).

    Args:
        differences: `(samples, hidden)`.
        rank: how many.

    Returns:
        Orthonormal rows, `(rank, hidden)` float32.
    """
    found: Tensor = torch.linalg.svd(differences.double(), full_matrices=False).Vh
    return found[:rank].float()
