"""Capabilities that few methods need: a method that inherits from one of these classes has it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.shown_pictures import ShownPictures
from vlmfix.engine.state import AuxiliaryPrompt, Branch, PruneResult
from vlmfix.engine.static_edits import ExitRows, StaticEdits
from vlmfix.engine.vision_encoder import Removable, VisionEncoder
from vlmfix.models.structure import StreamSite


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


class AddsExitRows(ReadsEarlyExits, ABC):
    """Does so with the exits as they are, with the final norm or without, and with their mean."""

    @abstractmethod
    def exit_rows(self, context: DecodeContext) -> ExitRows:
        """Which exits and how, the same in all steps of a run."""

    def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
        return self.exit_rows(context).layers

    def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
        assert context.modules is not None
        return self.exit_rows(context).of(context.early_exits, context.modules.final_norm)


class UsesOutputHead:
    """Turns hidden states into logits by itself, by `context.modules.output_logits`."""

    @property
    def needs_final_norm(self) -> bool:
        """Whether it applies the final norm of the text decoder before, by `context.modules`."""
        return False


class ReadsFinalStates(UsesOutputHead, ABC):
    """Reads what the text decoder makes of the tokens of the prompt, and turns it into logits by itself."""

    @abstractmethod
    def see_final_states(self, context: DecodeContext, hidden_states: Tensor) -> None:
        """See the hidden states after the final norm, `(batch, tokens, hidden)`, of the tokens of the prompt
        that are present in the last layer; in the prefill, before its last row is read again."""


class SeesLogits(ABC):
    """Looks at the logits of the model without a say in what they are."""

    @abstractmethod
    def see_logits(self, context: DecodeContext, logits: Tensor) -> None:
        """See the logits of the next token before any edit, `(batch, vocabulary)` float32."""


class ReadsLastRowAgain(ABC):
    """Reads the last prompt row once more, for methods that edit no earlier row and that know what to do only
    when they have seen the prompt."""

    @abstractmethod
    def reads_last_row_again(self, context: DecodeContext) -> bool:
        """Whether the row is read again in this run, then with `context.is_prefill` False."""


class PreviewsWeights(ABC):
    """Looks at the weights of all its prompt rows before it edits any of them."""

    @abstractmethod
    def preview(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        """See the weights without any edit of the rows asked for; in the prefill only.

        Those of a long prompt come in blocks, all of them before the first edit; `context.row_positions` says
        where they stand.

        Args:
            weights: `(batch, heads, rows, keys)` float32, 0 in rows for which a sequence did not ask.
        """


class ReplacesWeights:
    """Puts the weights of a head in the place of those of others; another edit of weights in the same rows is
    refused, as one of the two would be lost."""


class EditsQueries(ABC):
    """Edits the queries of whole passes, so that the model's own kernel goes on."""

    @abstractmethod
    def edit_query(self, context: DecodeContext, layer: int, query: Tensor, key: Tensor) -> Tensor:
        """Queries from which scores and outputs are computed; returns them, never in place.

        Args:
            query: after the rotary embedding, `(batch, heads, queries, head_dim)`.
            key: of the prompt and all that follows it, `(batch, key_value_heads, keys, head_dim)`.
        """


class ActsInStaticSteps(ABC):
    """Edits attention in decode steps by tensors of one shape, so that they can have a static cache and be
    compiled. What edits the logits alone need not say so."""

    @abstractmethod
    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> StaticEdits | None:
        """What it does in a layer of every step, asked once the prompts have been read; None: nothing.

        Args:
            keys: of all steps: those of the prompt, and slots for the tokens that follow.
        """


class RemembersSequences:
    """Keeps something of each sequence from one step to the next, in `context.memory`, which follows
    beams."""


class MeasuresScores(ABC):
    """Measures what edits of the scores do."""

    @abstractmethod
    def measure_scores(self, context: DecodeContext, layer: int, before: Tensor, after: Tensor) -> None:
        """See what the edits of the scores did to the newest row, for `context.measure`.

        Args:
            before: its weights without any edit, `(batch, heads, keys)` float32.
            after: its weights from the scores that all methods have edited.
        """


class EditsStream(ABC):
    """Changes the residual stream of the text decoder: what a part of a layer adds to it, or all of it."""

    stream_sites: ClassVar[tuple[StreamSite, ...]]
    """Where it acts in a layer."""

    @abstractmethod
    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        """Whether it takes part in a layer of this run."""

    @abstractmethod
    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        """What attention or the feed-forward part adds to the stream, or the stream that enters or leaves the
        layer, `(batch, tokens, hidden)` of the prompts alone; returns them, never in place.

        In a pass over the prompt `context.first_new_row(layer, tokens)` tells where the last prompt token
        stands, which predicts the first new one.
        """


class ReadsAhead(ABC):
    """Reads forms of the prompts once, before the prefill and without any edit."""

    @abstractmethod
    def read_ahead(
        self,
        context: DecodeContext,
        inputs_embeds: Tensor,
        decoder_inputs: Mapping[str, Any],
        read: Callable[[Branch], list[Tensor]],
    ) -> None:
        """Keep in `context.state` what it needs.

        Args:
            inputs_embeds: of the prompts, image features merged, `(batch, prompt, hidden)`.
            decoder_inputs: what else the text decoder was given, such as positions.
            read: gives what leaves each layer at the last token of a branch, `(batch, hidden)` each.
        """


class WritesAhead(ABC):
    """Lets the model answer other forms of the prompts, before the prefill and without any edit."""

    @abstractmethod
    def write_ahead(
        self,
        context: DecodeContext,
        inputs_embeds: Tensor,
        decoder_inputs: Mapping[str, Any],
        write: Callable[[Branch, Tensor, int], list[list[int]]],
    ) -> None:
        """Keep in `context.state` what it needs.

        Args:
            inputs_embeds: of the prompts, image features merged, `(batch, prompt, hidden)`.
            decoder_inputs: what else the text decoder was given, such as positions.
            write: gives the tokens that the model writes greedily after a branch, up to its end token, which
                is not among them: for the sequences that are wanted, `(batch,)` bool, and of so many tokens
                at most; none for the others.
        """


class ReadsVisionAttention:
    """Reads the attention of the vision encoder, as `context.encoded_images`."""

    needs_class_token: ClassVar[bool] = False
    """Whether an encoder without a class token is refused."""

    @property
    def reads_encoder(self) -> bool:
        """Whether it does so with its numbers."""
        return True

    @property
    def reads_maps(self) -> bool:
        """Whether it needs all weights of the layer, as `EncodedBlock.maps`, which a class token implies."""
        return False

    @property
    def encoder_layers(self) -> Mapping[int, bool]:
        """Layers of the encoder, 0-based, that it reads as `EncodedBlock.layers`, which a class token
        implies; and of each, whether it needs what the patches give each other, too."""
        return {}


class EditsVisionEncoder(ABC):
    """Changes what the vision encoder makes of pictures."""

    @property
    def edits_encoder(self) -> bool:
        """Whether it does so with its numbers."""
        return True

    @abstractmethod
    def hook_encoder(self, encoder: VisionEncoder) -> Sequence[Removable]:
        """Hang hooks on modules of the encoder, or replace layers, while the method is attached; the engine
        takes them off. A method that merges patches notes their groups in `encoder.groups`, and finds them in
        `context.vision_encoder` when the prompt is read.

        They see whatever is encoded: images and frames of prompts, and those of branches. Nothing of one may
        reach another.
        """


class RunsLayerParts:
    """Runs parts of a decoder layer by itself, by `context.modules` and `context.attend`."""


class StandsIn:
    """Is a method of another class on a model, which its `resolve` gives; it has no hooks itself."""


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


def reads_encoder(method: Any) -> bool:
    """Whether a method reads the attention of the vision encoder."""
    return isinstance(method, ReadsVisionAttention) and method.reads_encoder


def edits_encoder(method: Any) -> bool:
    """Whether a method changes what the vision encoder makes of pictures."""
    return isinstance(method, EditsVisionEncoder) and method.edits_encoder
