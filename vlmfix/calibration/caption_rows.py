"""Rows of a caption read again under other heads: what a head does to the token that comes next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmfix.calibration.head_statistics import first_order_effects
from vlmfix.calibration.results import with_answer
from vlmfix.engine.caches import with_cache
from vlmfix.engine.callers import turns_of
from vlmfix.engine.compatibility import stock_model
from vlmfix.models.structure import new_cache, text_decoder

# Tokens in the cache of a pass, all its rows together: 8 GiB for LLaVA-1.5-7B in half precision.
_TOKENS = 16384


class CaptionRows:
    """A prompt and the answer to it, read once; then single rows, each on what was read before it.

    A gate multiplies the output of a query head before the output projection, in the row that predicts a
    token and nowhere else: 1 leaves the head as it is, 0 silences it.

    Args:
        model: a stock model, without methods.
        inputs: of one prompt that ends with text, as from the processor.
        token_ids: the answer.
        tokens: in the cache of a pass, all its rows together; None: 16384.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Tensor],
        token_ids: Sequence[int],
        tokens: int | None = None,
    ) -> None:
        self._model: PreTrainedModel = stock_model(model)
        config = self._model.config.get_text_config()
        self._shape = config.num_hidden_layers, config.num_attention_heads
        whole = with_answer(inputs, token_ids)
        self._ids: Tensor = whole["input_ids"][0]
        self._first_row = inputs["input_ids"].shape[1] - 1
        self._size = max(1, (_TOKENS if tokens is None else tokens) // len(self._ids))
        cache = new_cache(text_decoder(self._model))
        with torch.no_grad(), _positions_of(self._model) as positions:
            self._model(**with_cache(self._model, whole, cache), use_cache=True, logits_to_keep=1)
        self._positions = positions[0][..., 0, :]
        layers: list[Any] = cache.layers  # typed as their base class, without keys
        self._states = [(layer.keys, layer.values) for layer in layers]

    def probabilities(self, places: Tensor, gates: Tensor) -> Tensor:
        """Probability of tokens of the answer, each in a row of its own.

        Args:
            places: of the tokens in the answer, `(rows,)` int64.
            gates: `(rows, layers, heads)`.

        Returns:
            `(rows,)` float32; with a graph back to the gates where these ask for one.
        """
        columns = (self._first_row + places).to(self._ids.device)
        longest = int(columns.max())
        cache = new_cache(text_decoder(self._model))
        for layer, states in enumerate(self._states):
            keys, values = (each[:, :, :longest].expand(len(places), -1, -1, -1) for each in states)
            cache.update(keys, values, layer)
        seen = torch.arange(longest + 1, device=columns.device) < columns[:, None]
        seen[:, -1] = True  # the row itself
        with _gated(self._model, gates):
            logits = self._model(
                input_ids=self._ids[columns, None],
                attention_mask=seen.long(),
                position_ids=self._positions[..., columns, None],
                use_cache=True,
                logits_to_keep=1,
                **with_cache(self._model, {}, cache),
            ).logits[:, -1]
        found: Tensor = logits.float().softmax(dim=-1)
        return found.gather(1, self._ids[columns + 1, None].to(found.device))[:, 0]

    @torch.no_grad()
    def exact(self, places: Sequence[int], silenced: Tensor) -> Tensor:
        """How far the probability of tokens falls without some heads.

        Args:
            places: of the tokens in the answer, one at least.
            silenced: which heads are, together, in each of several tries, `(tries, layers, heads)` bool.

        Returns:
            `(tokens, tries)` float32, on the CPU.
        """
        gates = torch.cat([torch.ones(1, *self._shape), (~silenced).float()])
        rows = torch.cartesian_prod(torch.tensor(places), torch.arange(len(gates)))
        found = [self.probabilities(part[:, 0], gates[part[:, 1]]).cpu() for part in rows.split(self._size)]
        probabilities = torch.cat(found).view(len(places), len(gates))
        return probabilities[:, :1] - probabilities[:, 1:]

    def first_order(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """How far the probability of tokens falls without each single head, see `first_order_effects`.

        Args:
            places: of the tokens in the answer, one at least.

        Returns:
            The estimates, `(tokens, layers, heads)`, and the probabilities, `(tokens,)`; float32, on the CPU.
        """
        parts = [
            first_order_effects(partial(self.probabilities, part), torch.ones(len(part), *self._shape))
            for part in torch.tensor(places).split(self._size)
        ]
        slopes, probabilities = zip(*parts, strict=True)
        return torch.cat(slopes), torch.cat(probabilities).cpu()


@contextmanager
def _gated(model: PreTrainedModel, gates: Tensor) -> Iterator[None]:
    """Within the block, head outputs of the last row are multiplied by gates `(batch, layers, heads)`."""
    decoder: Any = text_decoder(model)

    def gate_of(layer: int) -> Any:
        def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            own = gates[:, layer].to(args[0].device)
            heads = args[0].unflatten(-1, (own.shape[1], -1))
            gated: Tensor = heads * own[:, None, :, None]  # in float32 at least
            return (gated.to(heads.dtype).flatten(-2), *args[1:])

        return multiply

    with turns_of(model).block("vlmfix.calibrate"), ExitStack() as stack:
        for layer, block in enumerate(decoder.layers):
            handle = block.self_attn.o_proj.register_forward_pre_hook(gate_of(layer))
            stack.callback(handle.remove)
        yield


@contextmanager
def _positions_of(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within the block, positions that the text decoder is given are noted, `(..., 1, tokens)` a pass."""
    noted: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions = kwargs.get("position_ids")
        if positions is None:  # they run on
            embeddings = kwargs["inputs_embeds"]
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        noted.append(positions)

    handle = text_decoder(model).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield noted
    finally:
        handle.remove()
