"""Several dialogues about one image in one sequence: they share the image and do not see each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.families import Family
from training.prompts import Turn
from vlmfix.evaluation.datasets.synthetic.scenes import CATEGORIES

SHORT_ANSWER_WEIGHT = 2.0
IGNORED = -100


@dataclass
class Batch:
    """Packed sequences, all `(batch, sequence)` but `positions` `(3, batch, sequence)`.

    `segment` is 0 for the shared prefix, 1, 2, ... for the dialogues, -1 for padding; `slots` is the number
    of the image token at an image position and -1 elsewhere; `targets` is the next token where it is answer;
    `focus` is the number plus 1 of the category that a row asks about or is about to name, and 0 elsewhere.
    """

    ids: Tensor
    positions: Tensor
    segment: Tensor
    slots: Tensor
    targets: Tensor
    weights: Tensor
    focus: Tensor

    def attention_mask(self) -> Tensor:
        """Additive mask `(batch, 1, sequence, sequence)`: causal, within the prefix and one dialogue."""
        row, column = self.segment[:, :, None], self.segment[:, None, :]
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = causal & ((column == 0) | (column == row)) & (column >= 0)
        allowed |= torch.eye(length, dtype=torch.bool)
        return torch.zeros(allowed.shape).masked_fill(~allowed, -1e9).unsqueeze(1)

    def text_rows(self) -> Tensor:
        """Positions after the image `(batch, sequence)` bool."""
        return self.segment > 0


class Packer:
    """Builds batches for one family."""

    def __init__(self, family: Family, image_places: int, text_places: int) -> None:
        self.family, self.image_places, self.text_places = family, image_places, text_places
        self.before, self.after = (self._encode([text])[0] for text in family.prefix)
        token_of: Any = family.tokenizer.convert_tokens_to_ids  # an int for a string; typed for lists too
        self.image_id: int = token_of(family.tokenizer.image_token)
        self.names = self._names()
        self.length = len(self.before) + image_places + len(self.after) + text_places

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self.family.tokenizer(texts, add_special_tokens=False).input_ids
        return encoded

    def _names(self) -> dict[int, list[tuple[list[int], int]]]:
        """Spellings of the categories by first token, longest first, each with its number plus 1."""
        names: dict[int, list[tuple[list[int], int]]] = {}
        for number, category in enumerate(CATEGORIES.values(), start=1):
            for tokens in self._encode([f" {category.name}", f" {category.plural}"]):
                names.setdefault(tokens[0], []).append((tokens, number))
        for spellings in names.values():
            spellings.sort(key=lambda spelling: -len(spelling[0]))
        return names

    def _named(self, piece: list[int]) -> list[tuple[int, int, int]]:
        """First token, last token and category of every category named in a piece."""
        found = []
        for place, token in enumerate(piece):
            for tokens, number in self.names.get(token, []):
                if piece[place : place + len(tokens)] == tokens:
                    found.append((place, place + len(tokens) - 1, number))
                    break
        return found

    def __call__(
        self, grid: tuple[int, int], slots: list[np.ndarray], dialogues: list[list[list[Turn]]]
    ) -> Batch:
        """Pack images of one token grid: for each the image tokens to show and dialogues, as many as fit."""
        count = len(slots)
        batch = Batch(
            ids=torch.full((count, self.length), self.family.tokenizer.pad_token_id),
            positions=torch.zeros(3, count, self.length, dtype=torch.long),
            segment=torch.full((count, self.length), -1),
            slots=torch.full((count, self.length), -1),
            targets=torch.full((count, self.length), IGNORED),
            weights=torch.zeros(count, self.length),
            focus=torch.zeros(count, self.length, dtype=torch.long),
        )
        places, after = self.family.image_positions(*grid, start=len(self.before))
        texts = [text for image in dialogues for turns in image for text in self._pieces(turns)]
        encoded = iter(self._encode(texts))
        for row, shown in enumerate(slots):
            end = len(self.before)
            batch.ids[row, :end] = torch.tensor(self.before)
            batch.positions[:, row, :end] = torch.arange(end)
            image = slice(end, end + len(shown))
            batch.ids[row, image] = self.image_id
            batch.slots[row, image] = torch.from_numpy(shown)
            batch.positions[:, row, image] = places[:, shown]
            place, position = image.stop, after
            if self.after:
                batch.ids[row, place : place + len(self.after)] = torch.tensor(self.after)
                batch.positions[:, row, place : place + len(self.after)] = position + torch.arange(
                    len(self.after)
                )
                place, position = place + len(self.after), position + len(self.after)
            batch.segment[row, :place] = 0
            full = False
            for number, turns in enumerate(dialogues[row], start=1):
                pieces = [next(encoded) for _ in range(2 * len(turns))]
                size = sum(map(len, pieces))
                full = full or place + size > self.length
                if not full:
                    self._write(batch, row, place, position, number, pieces)
                    place += size
        return batch

    def _pieces(self, turns: list[Turn]) -> list[str]:
        first, between, before_answer, later = self.family.turn
        end = self.family.tokenizer.eos_token
        texts = []
        for number, (question, answer) in enumerate(turns):
            texts += [(later if number else first) + question + between, before_answer + answer + end]
        return texts

    def _write(
        self, batch: Batch, row: int, place: int, position: int, number: int, pieces: list[list[int]]
    ) -> None:
        start = place
        for order, piece in enumerate(pieces):
            here = slice(place, place + len(piece))
            tokens = torch.tensor(piece)
            batch.ids[row, here] = tokens
            batch.positions[:, row, here] = position + torch.arange(place - start, place - start + len(piece))
            batch.segment[row, here] = number
            if order % 2:
                answer = slice(place - 1, place - 1 + len(piece))
                batch.targets[row, answer] = tokens
                batch.weights[row, answer] = SHORT_ANSWER_WEIGHT if len(piece) < 4 else 1.0
            for first, last, category in self._named(piece):
                rows = [place + first - 1, place + first - 2] if order % 2 else [place + last, here.stop - 1]
                batch.focus[row, rows] = category
            place = here.stop
