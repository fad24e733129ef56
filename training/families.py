"""What the training stages need to know of an architecture, by one set of names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

HIDDEN, LAYERS, HEADS, KEY_HEADS, MLP = 192, 8, 6, 3, 448


class Family(ABC):
    """What the training stages need to know of an architecture.

    `cell` is the width of an image token in pixels. `prefix` is the text before and after the image. `turn`
    is what stands before the first question, between question and answer, before an answer, and before a
    later question.
    """

    name: str
    cell: int
    feature_size: int
    sizes: Sequence[tuple[int, int]]
    prefix: tuple[str, str]
    turn: tuple[str, str, str, str]

    tokenizer: PreTrainedTokenizerFast
    model: Any
    language_model: Any

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """Features `(batch, image tokens, feature_size)` of uint8 images `(batch, height, width, 3)`."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Image token embeddings `(batch, image tokens, hidden)` of vision features."""

    @abstractmethod
    def image_positions(self, rows: int, columns: int, start: int) -> tuple[Tensor, int]:
        """Positions `(3, image tokens)` of an image that starts at `start`, and the position after it."""

    @abstractmethod
    def vision_modules(self) -> list[nn.Module]:
        """Modules trained in the vision stage."""

    @abstractmethod
    def vision_matrices(self) -> list[nn.Module]:
        """Modules of the vision tower whose matrices are hidden layers."""

    @abstractmethod
    def projector(self) -> nn.Module:
        """The module between vision features and image token embeddings."""

    @abstractmethod
    def rotary(self, hidden_states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embedding of positions `(3, batch, sequence)`."""

    @abstractmethod
    def save_processor(self, folder: Path) -> None:
        """Write tokenizer, chat template and processor files."""

    def save(self, folder: Path) -> None:
        """Write the whole model folder, weights in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_processor(folder)
        ids = {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
        ids["pad_token_id"] = self.tokenizer.pad_token_id
        self.model.generation_config = GenerationConfig(**ids, do_sample=False, max_new_tokens=64)
        state = {name: tensor.half() for name, tensor in self.model.state_dict().items()}
        half = type(self.model)(self.model.config).half()
        half.load_state_dict(state)
        half.generation_config = self.model.generation_config
        half.save_pretrained(folder)


def normalized(pixels: Tensor, image_processor: Any) -> Tensor:
    """Images uint8 `(batch, height, width, 3)` as the tower gets them, `(batch, 3, height, width)`."""
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
