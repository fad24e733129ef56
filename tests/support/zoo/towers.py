"""A stand-in for vision towers of timm, which these tests do without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.support.zoo.shrink import PATCH, WIDTH


class Tower(torch.nn.Module):
    """One vector for each patch: a map, or a row behind a class token where a type reads rows."""

    def __init__(self, *, row: bool) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.row = row

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        features = self.convolution(pixel_values)
        if self.row:
            features = features.flatten(2).transpose(1, 2)
            features = torch.cat([features.mean(dim=1, keepdim=True), features], dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=features)


@contextmanager
def without_timm() -> Iterator[None]:
    """Models made here get a `Tower` where they ask for one of timm."""
    stock = AutoModel.from_config

    def from_config(config: PretrainedConfig, **kwargs: Any) -> torch.nn.Module:
        if config.model_type not in ("timm_wrapper", "gemma3n_vision"):
            return stock(config, **kwargs)
        return Tower(row="embed_dim" in (getattr(config, "model_args", None) or {}))

    with patch.object(AutoModel, "from_config", from_config):
        yield
