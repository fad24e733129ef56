"""Image tokens of a prompt block by block, with what the vision encoder made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.vision_attention import EncodedBlock
from vlmfix.methods.pruning.base import proportional_shares


class ShownBlock(NamedTuple):
    """An image, a tile of it or a frame of a video, as far as the prompt shows it.

    Args:
        sample: number of the prompt.
        positions: of its tokens in the prompt, `(tokens,)` int64.
        encoded: its patches, those of the tokens alone.
        share: its part of the budget, at most the number of its tokens.
    """

    sample: int
    positions: Tensor
    encoded: EncodedBlock
    share: int

    @property
    def states(self) -> Tensor:
        """What the encoder made of each token, `(tokens, width)`: the features that the projector reads, or
        the mean of the patches that were merged into the token, before that."""
        found = self.encoded.states if self.encoded.features is None else self.encoded.features
        assert found is not None
        return found


def shown_blocks(context: DecodeContext, budget: Callable[[int], int]) -> Iterator[ShownBlock]:
    """The blocks of all prompts that have more tokens than their budget.

    Blocks share the budget of their prompt in proportion to their tokens; newline tokens are in none.

    Args:
        context: in the prefill, of a method that reads the attention of the vision encoder.
        budget: from the image tokens of a prompt to those that stay.

    Raises:
        UnsupportedError: the vision encoder was not seen at work on these images.
    """
    for sample, images in enumerate(context.encoded_images):
        positions = context.layout.image_tokens[sample].nonzero().squeeze(1)
        count = budget(len(positions))
        if count >= len(positions):
            continue
        blocks, start = [], 0
        for image in images:
            for block in image.blocks:
                block = block.to(positions.device)
                shown = (block.places >= 0).nonzero().squeeze(1)
                blocks.append((positions[start + block.places[shown]], block.at(shown)))
            start += image.count
        shares = proportional_shares([len(own) for own, _ in blocks], count)
        for (own, block), share in zip(blocks, shares, strict=True):
            yield ShownBlock(sample, own, block, share)
