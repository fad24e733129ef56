"""Tokens that a processor writes around and between the placeholders of an image, such as row breaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

# Pictures of different shapes, which processors that cut tiles cut differently.
_SIZES = ((28, 28), (300, 300), (900, 300), (300, 900), (900, 900))
# Stands for any number: that of an image, a tile, or a size.
_NUMBER = -1

_known: WeakKeyDictionary[Any, dict[int, ImageMarkup | None]] = WeakKeyDictionary()


@dataclass(frozen=True)
class ImageMarkup:
    """What surrounds placeholders in the text that stands for one image.

    Args:
        heads: token sequences before the first placeholder; -1 in them stands for any number.
        tails: token sequences after the last one, likewise.
        between: tokens that stand between placeholders.
        numbers: tokens that are digits and signs alone; empty where there are none in these sequences.
    """

    heads: tuple[tuple[int, ...], ...]
    tails: tuple[tuple[int, ...], ...]
    between: frozenset[int]
    numbers: frozenset[int]

    def of_image(self, ids: Sequence[int], image: Sequence[bool]) -> list[int]:
        """To which of its images each token of a prompt belongs, counted from 0; -1: to none.

        What stands between the placeholders of two images belongs to none where it is more than a tail and a
        head. Images of which nothing tells where one ends and the next begins count as one.

        Args:
            ids: of one prompt, without padding.
            image: which of them are placeholders.
        """
        numbers = [-1] * len(ids)
        runs = _runs(image)
        number = 0
        for place, (start, stop) in enumerate(runs):
            before = runs[place - 1][1] if place else 0
            after = runs[place + 1][0] if place + 1 < len(runs) else len(ids)
            head = self._longest([each[::-1] for each in self.heads], ids[before:start][::-1])
            if place and self._is_inside(ids[before:start]):
                head = start - before
            numbers[start - head : stop] = [number] * (head + stop - start)
            gap = ids[stop:after]
            if after == len(ids) or not self._is_inside(gap):
                tail = self._longest(self.tails, gap)
                numbers[stop : stop + tail] = [number] * tail
                number += 1
        return numbers

    def _is_inside(self, gap: Sequence[int]) -> bool:
        """Whether the tokens between two runs of placeholders are of one image."""
        tail = self._longest(self.tails, gap, whole=True)
        head = self._longest([each[::-1] for each in self.heads], gap[::-1], whole=True)
        two = bool(tail and head) and tail + head <= len(gap)
        return not two and all(token in self.between or token in self.numbers for token in gap)

    def _longest(self, sequences: Sequence[Sequence[int]], ids: Sequence[int], *, whole: bool = False) -> int:
        """How many of the first ids begin one of the sequences as they stand next to a placeholder, at most.

        A tokenizer may have merged the far end of a sequence with the words beside it.

        Args:
            whole: whether only whole sequences count.
        """
        best = 0
        for sequence in sequences:
            place = matched = 0
            for token in sequence:
                first = place
                while token == _NUMBER and place < len(ids) and ids[place] in self.numbers:
                    place += 1
                if token != _NUMBER and place < len(ids) and ids[place] == token:
                    place += 1
                if place == first:
                    break
                matched += 1
            if not whole or matched == len(sequence):
                best = max(best, place)
        return best


def image_markup(processor: Any, placeholder: int) -> ImageMarkup | None:
    """What a processor writes for an image, learned from pictures of several shapes; None: it does not say.

    Args:
        processor: of the model.
        placeholder: id of the token that image features replace.
    """
    if not callable(getattr(processor, "replace_image_token", None)):
        return None
    known = _known.setdefault(processor, {})
    if placeholder not in known:
        known[placeholder] = _learn(processor, placeholder)
    return known[placeholder]


def _learn(processor: Any, placeholder: int) -> ImageMarkup | None:
    tokenizer = processor.tokenizer
    begin, end = _of_template(processor)
    heads, tails, between = set(), set(), set()
    for size in _SIZES:
        ids = _image_ids(processor, size)
        runs = [] if ids is None else _runs([each == placeholder for each in ids])
        if ids is None or not runs:
            continue
        heads.add((*begin, *ids[: runs[0][0]]))
        tails.add((*ids[runs[-1][1] :], *end))
        between |= {each for each in ids[runs[0][0] : runs[-1][1]] if each != placeholder}
    if not heads:
        return None
    shapes = {_shape(tokenizer, each) for each in between}
    between |= {each for each in tokenizer.added_tokens_decoder if _shape(tokenizer, each) in shapes}
    between -= {placeholder}
    around = {token for each in (*heads, *tails, between) for token in each}
    numbers: frozenset[int] = frozenset()
    if any(_is_number(token) for token in tokenizer.convert_ids_to_tokens(list(around))):
        numbers = frozenset(token for text, token in tokenizer.get_vocab().items() if _is_number(text))
    return ImageMarkup(
        tuple(_with_any_number(each, numbers) for each in heads),
        tuple(_with_any_number(each, numbers) for each in tails),
        frozenset(between),
        numbers,
    )


def _is_number(text: str) -> bool:
    """Whether a token is digits, and maybe signs, alone."""
    return re.fullmatch(r"[\W_]*\d[\W\d_]*", text) is not None


def _with_any_number(ids: Sequence[int], numbers: frozenset[int]) -> tuple[int, ...]:
    """A sequence with numbers, of one token or several, as `_NUMBER`."""
    marked = [_NUMBER if token in numbers else token for token in ids]
    return tuple(
        token
        for place, token in enumerate(marked)
        if token != _NUMBER or marked[place - 1 : place] != [_NUMBER]
    )


def image_item(processor: Any) -> str:
    """What stands for an image in a prompt before a processor has seen its pictures, markers included."""
    tokenizer = processor.tokenizer
    begin, end = ("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in _of_template(processor))
    return f"{begin}{getattr(processor, 'image_token', '')}{end}"


def _of_template(processor: Any) -> tuple[list[int], list[int]]:
    """Added tokens that the chat template writes directly before and after an image."""
    tokenizer = processor.tokenizer
    parts: list[list[dict[str, str]]] = [
        [{"type": "text", "text": "one"}, *image, {"type": "text", "text": "two"}]
        for image in ([], [{"type": "image"}])
    ]
    try:
        without, shown = (
            processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            for content in parts
        )
        before, item, after = _inserted(without, shown).partition(processor.image_token)
    except Exception:  # there is no template, or it knows no images
        return [], []
    if not item:
        return [], []
    added = tokenizer.added_tokens_decoder
    head, tail = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after))
    begin = list(takewhile(added.__contains__, head[::-1]))[::-1]
    return begin, list(takewhile(added.__contains__, tail))


def _without(ids: list[int], begin: list[int], end: list[int]) -> list[int]:
    """The tokens between those of the template, where they stand."""
    start = next((at for at in range(len(ids)) if begin and ids[at : at + len(begin)] == begin), None)
    ids = ids if start is None else ids[start + len(begin) :]
    stops = [at for at in range(len(ids)) if end and ids[at : at + len(end)] == end]
    return ids[: stops[-1]] if stops else ids


def _inserted(without: str, shown: str) -> str:
    """What stands in one text alone, between what it shares with the other at its start and its end."""
    start = _shared(without, shown)
    rest = _shared(without[start:][::-1], shown[start:][::-1])
    return shown[start : len(shown) - rest]


def _shared(one: Sequence[Any], two: Sequence[Any]) -> int:
    """How much two sequences begin with in common."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(two)))


def _shape(tokenizer: Any, token: int) -> str:
    """A token without its numbers: tiles are named by row and column."""
    return re.sub(r"\d+", "#", str(tokenizer.convert_ids_to_tokens(token)))


def _image_ids(processor: Any, size: tuple[int, int]) -> list[int] | None:
    """The tokens that stand for a picture; None: they cannot be had."""
    picture = Image.new("RGB", size, (128, 128, 128))
    tokenizer = processor.tokenizer
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    names = ("image_token", "boi_token", "start_of_image_token")
    items = [item for name in names if isinstance(item := getattr(processor, name, None), str)]
    begin, end = _of_template(processor)
    for item in (*items, image_item(processor)):  # some take it as the template has it alone
        for images in ([picture], [[picture]]):
            try:
                made = processor(
                    text=[item], images=images, return_text_replacement_offsets=True, return_tensors="pt"
                )
            except Exception:  # processors take their pictures and texts in different ways
                continue
            offsets = made.get("text_replacement_offsets")
            if offsets and offsets[0]:
                text = "".join(each["replacement"] for each in offsets[0])
                return list(tokenizer(text, add_special_tokens=False)["input_ids"])
            ids: list[int] = made["input_ids"][0].tolist()
            if item not in items:
                ids = _without(ids, begin, end)
            first = next((place for place, each in enumerate(ids) if each not in ends), len(ids))
            last = next((place for place, each in enumerate(ids[::-1]) if each not in ends), 0)
            return ids[first : len(ids) - last]
    return None


def _runs(image: Sequence[bool]) -> list[tuple[int, int]]:
    """Where placeholders stand one after the other: the first, and the one after the last."""
    edges = [
        place
        for place in range(len(image) + 1)
        if (place < len(image) and image[place]) != (place > 0 and image[place - 1])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
