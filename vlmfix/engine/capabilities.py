"""Capabilities that few methods need: a method that inherits from one of these classes has it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.shown_pictures import ShownPictures
from vlmfix.engine.state import AuxiliaryPrompt, PruneResult


class PrunesTokens(ABC):
    """Drops tokens of the prompt."""

    @abstractmethod
    def prune(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> PruneResult | None:
        """Which tokens go on to a layer; in the prefill only; None: all.

        What enters layer 0 are the embeddings with the image features merged. `context.peek(rows)` gives the
        weights of the layer that is about to run.

        Args:
            hidden_states: residual stream that is about to enter the layer, `(batch, tokens, hidden)`.
        """


class AddsAuxiliaryPrompt(ABC):
    """Reads a second prompt after the first in the same prefill."""

    @abstractmethod
    def auxiliary_prompt(self, context: DecodeContext, inputs_embeds: Tensor) -> AuxiliaryPrompt | None:
        """The second prompt; None: none.

        Args:
            inputs_embeds: of the prompt, image features merged, `(batch, prompt, hidden)`.
        """


class ReadsEarlyExits(ABC):
    """Lets the model turn hidden states of inner layers into logits, through its own final norm and head."""

    @abstractmethod
    def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
        """Layers of which `context.early_exits` shall hold what enters them at the newest position, in every
        step."""

    @abstractmethod
    def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
        """Further hidden states, `(batch, hidden)` each, that the model shall turn into logits in one go with
        its own; `edit_logits` gets their logits after the logits of the branches.

        Args:
            hidden_states: what the model turns into logits itself, at the newest position, after the final
                norm, `(batch, hidden)`.
        """

    @property
    def needs_final_norm(self) -> bool:
        """Whether it applies the final norm of the text decoder by itself, by `context.modules`."""
        return True


class ReadsLastRowAgain(ABC):
    """Reads the last prompt row once more, for methods that edit no earlier row and that know what to do only
    when they have seen the prompt."""

    @abstractmethod
    def reads_last_row_again(self, context: DecodeContext) -> bool:
        """Whether the row is read again in this run, then with `context.is_prefill` False."""


class MeasuresScores(ABC):
    """Measures what edits of the scores do."""

    @abstractmethod
    def measure_scores(self, context: DecodeContext, layer: int, before: Tensor, after: Tensor) -> None:
        """See what the edits of the scores did to the newest row, for `context.measure`.

        Args:
            before: its weights without any edit, `(batch, heads, keys)` float32.
            after: its weights from the scores that all methods have edited.
        """


class ReadsVisionAttention:
    """Reads the attention of the vision encoder, as `context.encoded_images`."""


class RunsLayerParts:
    """Runs parts of a decoder layer by itself, by `context.modules` and `context.attend`."""


class ChoosesTokens(ABC):
    """Says how tokens are chosen: `decoding` passes its loop to `generate`, and a step of its edit statistics
    is the choice of a token."""

    @abstractmethod
    def check_generate(self, generate_kwargs: Mapping[str, Any]) -> None:
        """Refuse a `generate` call in which it could not act.

        Raises:
            UnsupportedError: with the reason and the remedy.
        """


class ChangesPictures(ABC):
    """Shows the model other pictures than it is given; `vlmfix.generate` and the harness do so."""

    @abstractmethod
    def pictures(self, images: Sequence[Image.Image], processor: ProcessorMixin) -> ShownPictures:
        """What is shown in the place of the pictures of some prompts; a picture that comes twice is one
        object.

        Raises:
            UnsupportedError: the processor does not let it.
        """


class AsksSeveralTimes(ABC):
    """Asks the model several times, in passes of its own."""

    @abstractmethod
    def run(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        images: Any,
        prompt: str,
        **generate_kwargs: Any,
    ) -> Any:
        """Answer one prompt; what comes back has the text as its `answer`."""
