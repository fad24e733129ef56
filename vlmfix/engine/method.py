"""Hooks by which a method acts, as the engine calls them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, overload

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import (
    AsksSeveralTimes,
    ChoosesTokens,
    EditsQueries,
    EditsStream,
    PrunesTokens,
)
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.gates import Disagreement, Gate, parse_gate
from vlmfix.engine.gating import BOTH, PARTS
from vlmfix.engine.layout import Rows
from vlmfix.engine.state import Branch
from vlmfix.engine.stats import InactiveMethodWarning, Sums
from vlmfix.models.profiles import Profile


class GateField:
    """The field `gate` of every method: a gate or its text, and None by default."""

    @overload
    def __get__(self, method: None, owner: type[Any]) -> None: ...

    @overload
    def __get__(self, method: object, owner: type[Any]) -> Gate | None: ...

    def __get__(self, method: object | None, owner: type[Any]) -> Gate | None:
        return None if method is None else vars(method).get("gate")

    def __set__(self, method: Any, value: Gate | str | None) -> None:
        """Take it over.

        Raises:
            ValueError: it is no gate, or one that this method cannot have.
        """
        gate = value if isinstance(value, Gate) or value is None else parse_gate(value)
        name = type(method).__name__
        if gate is not None and not method.takes_gate():
            raise ValueError(
                f"a gate scales edits of attention, stream and logits of the newest token, and what {name} "
                f"does is something else; leave out gate={str(gate)!r}"
            )
        if isinstance(gate, Disagreement) and not method.has_branches_alone():
            raise ValueError(
                f"{name} does not compare the logits with those of a branch, which {str(gate)!r} looks at; "
                "use entropy, margin or top1"
            )
        vars(method)["gate"] = gate


class PartField:
    """The field `act_on` of every method: "both" by default, "reasoning" or "answer"."""

    def __get__(self, method: object | None, owner: type[Any]) -> str:
        return BOTH if method is None else str(vars(method).get("act_on", BOTH))

    def __set__(self, method: Any, value: str) -> None:
        """Take it over.

        Raises:
            ValueError: it is no part, or one on which this method cannot act alone.
        """
        if value not in PARTS:
            raise ValueError(f"act_on is {value!r}; it must be one of {', '.join(PARTS)}")
        if value != BOTH and not method.takes_gate():
            raise ValueError(
                f"what {type(method).__name__} does holds for reasoning and answer alike, as it is done to "
                f"the prompt or by the search; leave out act_on={value!r}"
            )
        vars(method)["act_on"] = value


@dataclass(frozen=True, kw_only=True)
class MethodHooks:
    """What the engine calls; a method overrides one to three of these, and inherits from the classes of
    `vlmfix.engine.capabilities` for what few methods need.

    Methods on one model compose in the order in which they were attached, and within a forward pass in this
    one: auxiliary prompts join the prompt; then, layer by layer, a pruning method drops tokens, `enter_layer`
    sees those that go on, scores are edited (each method sees the scores of the model, and the edits add up),
    weights are edited one after the other, all methods observe the final weights, head outputs are edited,
    then what attention and the feed-forward part add to the residual stream, then the stream that leaves the
    layer; at the end of the prefill auxiliary prompts leave and, if a method asks for it, the last prompt row
    is read again under all edits; then the model turns its hidden states, branches and extra hidden states
    into logits at once, and these are edited.

    What a hook is given belongs to the model: an edit returns a new tensor, and one in place is refused.
    Tensors cover the tokens that are present in the layer; `context.layout_at(layer)` tells where the image
    and the text are among them.

    Args:
        gate: scales the edits of the newest row in every step, see `vlmfix.engine.gates`; rows of the prompt
            before the last are edited as without it. None: edits are whole.
        act_on: of models that reason before they answer, the part in which it acts: "reasoning", "answer" or
            "both". The pass that reads the prompt belongs to the part that begins after it.
    """

    gate: GateField = GateField()
    act_on: PartField = PartField()
    identity_parameters: ClassVar[Mapping[str, Any]] = {}
    """Values that switch the method off, all of them together."""
    edits: ClassVar[bool] = True
    """Whether it edits at all; what an observer does is neither counted nor worth a warning."""
    needs_image: ClassVar[bool] = True
    """Whether it leaves prompts without an image or a video as they are."""
    keeps_prefix: ClassVar[bool] = False
    """Whether nothing that it edits or observes by rows stands before the last image token, so that
    prompts about one image may share what was read up to there; `enter_layer` still sees the whole prompt."""
    follows_logits: ClassVar[bool] = False
    """Whether its edit of the logits may come after one of another method, whatever that is."""
    _sums: Sums = field(default_factory=Sums, init=False, repr=False, compare=False)

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
    def owns_logits(self) -> bool:
        """Whether it says what the logits are."""
        return type(self).edit_logits is not MethodHooks.edit_logits

    @property
    def edits_attention(self) -> bool:
        """Whether it edits queries, scores, weights or outputs of heads, or the residual stream."""
        edits = _overrides(type(self), "edit_scores", "edit_weights", "edit_heads")
        return edits or isinstance(self, EditsStream | EditsQueries)

    @property
    def is_gated(self) -> bool:
        """Whether its edits may be left out, or scaled, in some sequences and steps."""
        return self.gate is not None or self.act_on != BOTH

    @classmethod
    def takes_gate(cls) -> bool:
        """Whether all that it does are edits of attention, stream and logits, which a gate scales."""
        acts_elsewhere = issubclass(cls, PrunesTokens | ChoosesTokens | AsksSeveralTimes)
        edits = _overrides(cls, "edit_scores", "edit_weights", "edit_heads", "edit_logits")
        return cls.edits and (edits or issubclass(cls, EditsStream | EditsQueries)) and not acts_elsewhere

    @classmethod
    def has_branches_alone(cls) -> bool:
        """Whether it edits the logits by those of branches, and no attention, which comes before them."""
        earlier = _overrides(cls, "edit_scores", "edit_weights", "edit_heads")
        earlier = earlier or issubclass(cls, EditsStream | EditsQueries)
        return _overrides(cls, "branches") and not earlier

    @property
    def sees_layers(self) -> bool:
        """Whether it looks at what enters the layers."""
        return type(self).enter_layer is not MethodHooks.enter_layer

    @property
    def observes(self) -> bool:
        """Whether it looks at final weights."""
        return type(self).observe is not MethodHooks.observe

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        """This method with every value filled in that depends on the checkpoint.

        Args:
            config: of the whole model.
            profile: what is known about the checkpoint; None if nothing is.

        Raises:
            ValueError: a value is missing or does not fit the model; the message says how to get one.
        """
        return self

    def resolved(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        """What `resolve` makes of it; a refusal also names the profile files of the values that it took."""
        try:
            return self.resolve(config, profile)
        except ValueError as error:
            if profile is None or not profile.sources:
                raise
            raise ValueError(f"{error}; {profile.sources}") from error

    def begin(self, context: DecodeContext) -> None:
        """See a new prompt before the model reads it."""

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

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        """Logits of the next token, before the processors of `generate`, `(batch, vocabulary)` float32.

        Args:
            logits: of the prompts.
            branches: of each branch and of each extra hidden state, in the same form.
        """
        return logits

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

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        """Weights after the softmax, `(batch, heads, rows, keys)` float32; returns them, never in place."""
        return weights

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        """Outputs of all heads and rows before the output projection, `(batch, queries, heads, head_dim)`.

        In the prefill the rows of auxiliary prompts come after those of the prompt.
        """
        return heads

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        """See the final weights of the rows asked for, `(batch, heads, rows, keys)` float32.

        `context.attend(weights)` gives what the layer would make of other weights.
        """

    def edit_sites(self, layer: int, heads: int) -> int:
        """How many of the heads of a layer it could edit in a step, for its activity."""
        return heads

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
            if "" in reasons and sums.other_sizes.get("gate_open", (1.0, 0))[0] == 0:
                reason = f"its gate {self.gate} never opened; change its bounds"
                if self.gate is None:
                    reason = f"no answer had the part on which it acts (act_on={self.act_on!r})"
            moved = f", none by more than {sums.divergence.kl_max:.1g} nats" if sums.edited else ""
            warnings.warn(
                f"{type(self).__name__} edited {sums.edited} of {sums.eligible} sites in {sums.steps} steps "
                f"of {sums.rows} sequences{moved}: {reason}",
                InactiveMethodWarning,
                stacklevel=2,
            )
        self._sums.add(sums)


def _overrides(cls: type[MethodHooks], *hooks: str) -> bool:
    return any(getattr(cls, hook) is not getattr(MethodHooks, hook) for hook in hooks)


def _in_words(reasons: Iterable[str]) -> Iterable[str]:
    return ("no image in the prompt" if reason == "no_image" else reason for reason in reasons)
