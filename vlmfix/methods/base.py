"""What a method is: a dataclass of numbers, and the hooks with which it acts.

Methods on one model compose in the order in which they were attached, and within a forward pass in this one:
companions join the prompt; then, layer by layer, a pruning method drops tokens, `enter_layer` sees those that
go on, scores are edited (each method sees those of the model, and the edits add up), weights are edited one
after the other, all methods observe the final weights, head outputs are edited; at the end of the prefill
companions leave and, if a method asks for it, the last prompt row is read again under all edits; then the
model turns its hidden states, branches and `extra_hidden_states` into logits at once, and these are edited.
"""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from vlmfix.engine.attach import AttachmentBlock, fitted
from vlmfix.engine.branches import Branch
from vlmfix.engine.compatibility import stock_model
from vlmfix.engine.context import AuxiliaryPrompt, DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.logits_processor import MethodLogitsProcessor
from vlmfix.engine.stats import (
    EditStats,
    InactiveMethodWarning,
    SequenceStats,
    Sums,
)
from vlmfix.errors import UnsupportedError
from vlmfix.models.profiles import Profile

Stage = Literal["attention", "logits", "pruning", "vision", "image", "decoding", "baseline"]
Provenance = Literal["paper", "released code", "reconstruction", "unpublished"]


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """What `vlmfix methods` prints of a method.

    Args:
        stage: where it acts; a baseline is what methods are compared with, a trivial explanation of a gain.
        changes: what it changes, in a few words.
        where: in which rows and layers.
        forwards: forward passes per generated token; 1.0 is the cost of plain decoding.
        provenance: what it was built from.
        paper: arXiv id; without one, the address of the code; None: unpublished.
        decoding: ways of decoding that it works with.
        kernels: attention kernels that it works with.
        families: model families that it works with.

    Raises:
        ValueError: `stage` or `provenance` is none of those that there are, or only one of `paper` and
            `provenance` says that it is published.
    """

    stage: Stage
    changes: str
    where: str
    forwards: float
    provenance: Provenance = "unpublished"
    paper: str | None = None
    decoding: str = "greedy, sampling, beams, batches"
    kernels: str = "SDPA, FlashAttention, eager"
    families: str = "all"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("stage", self.stage, get_args(Stage)),
            ("provenance", self.provenance, get_args(Provenance)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if (self.paper is None) != (self.provenance == "unpublished"):
            raise ValueError(
                f"paper is {self.paper!r} and provenance {self.provenance!r}; an unpublished method has no "
                "paper, and every other one names its paper or code"
            )

    @property
    def is_on_arxiv(self) -> bool:
        """Whether `paper` is an arXiv id."""
        return self.paper is not None and "/" not in self.paper

    @property
    def is_baseline(self) -> bool:
        """Whether it is what methods are compared with."""
        return self.stage == "baseline"


class PruneResult(NamedTuple):
    """What a pruning keeps of the tokens that are about to enter a layer.

    Args:
        mask: `(batch, tokens)` bool; samples may keep different numbers.
        hidden_states: what the image tokens are from now on, where some were merged into others, `(batch,
            tokens, hidden)`; None: what they are.
        renumbered: whether positions count anew over the kept tokens.
    """

    mask: Tensor
    hidden_states: Tensor | None = None
    renumbered: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """A mitigation strategy; `with method(model): model.generate(...)` applies it.

    A method declares its numbers as fields, checks them in `__post_init__`, describes itself in `info`,
    names the values that switch it off in `identity_parameters`, and overrides the hooks that it needs. It
    never touches a model and keeps what it learns in `context.state`. Tensors of the hooks cover the tokens
    that are present in the layer; `context.layout_at(layer)` tells where the image and the text are among
    them.
    """

    name: ClassVar[str]
    """By which the command line and results call it; where a class says nothing, its own in lower case."""
    info: ClassVar[MethodInfo]
    identity_parameters: ClassVar[Mapping[str, Any]] = {}
    attaches: ClassVar[bool] = True
    """Whether it acts inside one `model.generate`, and not on what is asked or how it is decoded alone."""
    edits: ClassVar[bool] = True
    """Whether it edits at all; what an observer does is neither counted nor worth a warning."""
    needs_image: ClassVar[bool] = True
    """Whether it leaves prompts without an image or a video as they are."""
    needs_encoder: ClassVar[bool] = False
    """Whether it reads the attention of the vision encoder, as `context.encoded_images`."""
    needs_plain_layers: ClassVar[bool] = False
    """Whether it runs parts of a decoder layer by itself, by `context.modules` and `context.attend`."""
    keeps_prefix: ClassVar[bool] = False
    """Whether nothing that it edits or observes by rows stands in front of the last image token, so that
    prompts about one image may share what was read up to there; `enter_layer` still sees the whole prompt."""
    is_multi_pass: ClassVar[bool] = False
    """Whether it asks the model several times, see `MultiPassMethod`."""
    decodes: ClassVar[bool] = False
    """Whether it says how tokens are chosen; `decoding` then passes its loop to `generate`, and a step of its
    activity is the choice of a token."""

    _sums: Sums = field(default_factory=Sums, init=False, repr=False, compare=False)

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def __call__(
        self, model: PreTrainedModel, processor: ProcessorMixin | None = None
    ) -> AbstractContextManager[None]:
        """Attach to `model` for a `with` block; see `AttachmentBlock` of `vlmfix.engine.attach`."""
        return AttachmentBlock(model, self, processor)

    def logits_processor(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Any],
        processor: ProcessorMixin | None = None,
    ) -> LogitsProcessorList:
        """This method for `model.generate(**inputs, logits_processor=...)`, of methods that edit the logits.

        It gives the same tokens as `with method(model):` and leaves the model alone, but reads every prompt
        and every token a second time: prefer the block. What it does is not counted in `edit_stats`. Other
        methods, attached to the model, act in this second reading, too.

        `generate` runs it after its own processors and before temperature, top-k and top-p; the edit of the
        block comes before them all. Tokens that a processor bans (`bad_words_ids`, `min_new_tokens`, ...) are
        taken out again, edited, and banned: the tokens are those of the block. A processor that changes
        scores (`repetition_penalty`, `sequence_bias`, `guidance_scale`, ...) cannot be taken out and is
        refused; to have one after the edit, pass it after this one in the list for `logits_processor`.

        Args:
            model: as for a `with` block.
            inputs: of this very call of `generate`, with `input_ids`; it serves calls with equal inputs, and
                compares the scores that it gets with its own to know.
            processor: of the model, for methods that read the words of the prompt.

        Raises:
            UnsupportedError: the method acts inside the model, or the model is not supported; later, when a
                processor changed the scores before it, or an attached method does not go with it.
            ValueError: a value of the method does not fit the model; later, when used with other inputs.
        """
        if self.is_identity:
            return LogitsProcessorList()
        model = stock_model(model)
        return LogitsProcessorList(
            [MethodLogitsProcessor(model, fitted(model, self, processor), inputs, processor)]
        )

    @property
    def is_identity(self) -> bool:
        """Whether the numbers leave the model as it is; the stock model then runs untouched."""
        off = [getattr(self, name) == value for name, value in self.identity_parameters.items()]
        return bool(off) and all(off)

    @property
    def needs_processor(self) -> bool:
        """Whether it cannot do without the processor of the model, to read words or to make pixels."""
        return False

    @property
    def prunes(self) -> bool:
        """Whether it drops tokens of the prompt."""
        return type(self).prune is not Method.prune

    @property
    def owns_logits(self) -> bool:
        """Whether it says what the logits are."""
        return type(self).edit_logits is not Method.edit_logits

    @property
    def needs_final_norm(self) -> bool:
        """Whether it applies the final norm of the text decoder by itself, by `context.modules`."""
        return False

    @property
    def sees_layers(self) -> bool:
        """Whether it looks at what enters the layers."""
        return type(self).enter_layer is not Method.enter_layer

    @property
    def observes(self) -> bool:
        """Whether it looks at final weights."""
        return type(self).observe is not Method.observe

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.init}

    def edit_stats(self) -> EditStats:
        """What this object did in all runs that have ended."""
        edit_stats = self._sums.edit_stats(heads=self.info.stage == "attention")
        return (
            dataclasses.replace(edit_stats, details={"strength zero": True})
            if self.is_identity
            else edit_stats
        )

    def latest_edit_stats(self) -> list[SequenceStats]:
        """What this object did in each sequence of the run that ended last, samples times beams."""
        return list(self._sums.latest)

    def reset_edit_stats(self) -> None:
        """Forget what was done, and warn anew."""
        vars(self._sums).update(vars(Sums()))

    @property
    def measures_scores(self) -> bool:
        """Whether it measures what edits of the scores do."""
        return type(self).measure_scores is not Method.measure_scores

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        """This method with every value filled in that depends on the checkpoint.

        Args:
            config: of the whole model.
            profile: what is known about the checkpoint; None if nothing is.

        Raises:
            ValueError: a value is missing or does not fit the model; the message says how to get one.
        """
        return self

    def prompt(self, text: str) -> str:
        """What `vlmfix.generate` and the harness ask in place of `text`."""
        return text

    @property
    def prompt_change(self) -> str:
        """What `prompt` changes, in a word for the ids of results; "": nothing."""
        return ""

    def decoding(self, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments with which `vlmfix.generate` and the harness call `model.generate` under this method.

        Args:
            generate_kwargs: those without it.
        """
        return dict(generate_kwargs)

    def check_generate(self, generate_kwargs: Mapping[str, Any]) -> None:
        """Refuse a `generate` call in which it could not act.

        Raises:
            UnsupportedError: with the reason and the remedy.
        """

    def begin(self, context: DecodeContext) -> None:
        """See a new prompt before the model reads it."""

    def auxiliary_prompt(self, context: DecodeContext, inputs_embeds: Tensor) -> AuxiliaryPrompt | None:
        """A second prompt to read behind the first in the same prefill; None: none.

        Args:
            inputs_embeds: of the prompt, image features merged, `(batch, prompt, hidden)`.
        """
        return None

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        """Other forms of the prompts to be decoded beside them, whose logits `edit_logits` gets; in the
        prefill.

        Args:
            inputs_embeds: of the prompts, image features merged, `(batch, prompt, hidden)`.
            decoder_inputs: what else the text decoder was given, such as positions.
        """
        return ()

    def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
        """Layers of which `context.exits` shall hold what enters them at the newest position, in every
        step."""
        return ()

    def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
        """Further hidden states, `(batch, hidden)` each, that the model shall turn into logits in one go with
        its own; `edit_logits` gets these behind those of the branches.

        Args:
            hidden_states: what the model turns into logits itself, at the newest position, behind the final
                norm, `(batch, hidden)`.
        """
        return ()

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        """Logits of the next token, before the processors of `generate`, `(batch, vocabulary)` float32.

        Args:
            logits: of the prompts.
            branches: of each branch and of each readout, in the same form.
        """
        return logits

    def prune(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> PruneResult | None:
        """Which tokens go on to a layer; in the prefill only; None: all.

        What enters layer 0 are the embeddings with the image features merged. `context.peek(rows)` gives the
        weights of the layer that is about to run.

        Args:
            hidden_states: residual stream that is about to enter the layer, `(batch, tokens, hidden)`.
        """
        return None

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> None:
        """See the residual stream that enters a layer, `(batch, tokens, hidden)`; in the prefill only."""

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        """The prompt rows this method wants explicitly in this layer and step; None: no part in it.

        Generated rows always belong to the rows of a method that takes part.
        """
        return None

    def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
        """Scaled scores before mask and softmax, `(batch, heads, rows, keys)` float32; returns them.

        Each row is edited by itself: those of a long prompt come in blocks (`context.has_newest_row`).
        Every method sees the scores of the model; what several add to them adds up.
        """
        return scores

    def measure_scores(self, context: DecodeContext, layer: int, before: Tensor, after: Tensor) -> None:
        """See what the edits of the scores did to the newest row, for `context.measure`.

        Args:
            before: its weights without any edit, `(batch, heads, keys)` float32.
            after: those of the scores that all methods have edited.
        """

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        """Weights after the softmax, `(batch, heads, rows, keys)` float32; returns them, never in place."""
        return weights

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        """Outputs of all heads and rows before the output projection, `(batch, queries, heads, head_dim)`.

        In the prefill the rows of companions come behind those of the prompt.
        """
        return heads

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        """See the final weights of the rows asked for, `(batch, heads, rows, keys)` float32.

        `context.attend(weights)` gives what the layer would make of other weights.
        """

    def edit_sites(self, layer: int, heads: int) -> int:
        """How many of the heads of a layer it could edit in a step, for its activity."""
        return heads

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        """Whether the last prompt row is run once more when the prompt has been read, with
        `context.is_prefill` False.

        For methods that edit no earlier row, and that know what to do only when they have seen the prompt.
        """
        return False

    def skipped(self, context: DecodeContext) -> dict[str, Tensor]:
        """Sequences that the method declines, by reason, `(batch,)` bool each: those without an image, and
        those that it noted by `context.decline`. One prompt that it cannot take must not fail the others."""
        without = {"no_image": ~context.layout.image_tokens.any(dim=1)} if self.needs_image else {}
        return without | context.declined.get(self, {})

    def takes(self, context: DecodeContext) -> Tensor:
        """Sequences that the method does not decline, `(batch,)` bool; it leaves all others as they are."""
        taken = torch.ones_like(context.layout.image_tokens[:, 0])
        for declined in self.skipped(context).values():
            taken = taken & ~declined
        return taken

    def report(self, context: DecodeContext, sums: Sums) -> None:
        """Add `size` and `details` of this run to its sums."""

    def inactive_reason(self, context: DecodeContext) -> str:
        """Why nothing was edited in a run with an image, and what to do; for the warning."""
        return "no site met its conditions; see its parameters"

    def end(self, context: DecodeContext) -> None:
        """Take over what was counted in a run; warns, once an object, if the method did nothing."""
        if not self.edits:
            return
        skipped = self.skipped(context)
        sums = context.counts_of(self).close(skipped)
        self.report(context, sums)
        if sums.did_nothing and not self._sums.warned:
            self._sums.warned = True
            reasons = dict.fromkeys(row.skipped for row in sums.latest)
            reason = self.inactive_reason(context) if "" in reasons else ", ".join(_in_words(reasons))
            moved = f", none by more than {sums.divergence.kl_max:.1g} nats" if sums.edited else ""
            warnings.warn(
                f"{type(self).__name__} edited {sums.edited} of {sums.eligible} sites in {sums.steps} steps "
                f"of {sums.rows} sequences{moved}: {reason}",
                InactiveMethodWarning,
                stacklevel=2,
            )
        self._sums.add(sums)


def _in_words(reasons: Iterable[str]) -> Iterable[str]:
    return ("no image in the prompt" if reason == "no_image" else reason for reason in reasons)


class MultiPassMethod(Method, ABC):
    """A strategy that asks the model several times, by `run`; it cannot attach to one `model.generate`."""

    is_multi_pass: ClassVar = True
    attaches: ClassVar = False

    def __call__(
        self, model: PreTrainedModel, processor: ProcessorMixin | None = None
    ) -> AbstractContextManager[None]:
        """Refuses, since a single `model.generate` has neither the pictures nor several passes.

        Raises:
            UnsupportedError: always; the message names what to call instead.
        """
        name = type(self).__name__
        raise UnsupportedError(
            f"{name} asks several times and changes the image, for which it needs the processor and the "
            f"image: use vlmfix.generate(model, processor, image, prompt, {name}()), or {name}().run(...)"
        )

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
