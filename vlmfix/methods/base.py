"""Base of all methods: a dataclass of numbers that attaches to a model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from transformers import LogitsProcessorList, PreTrainedModel, ProcessorMixin

from vlmfix.engine.attach import AttachmentBlock, fitted
from vlmfix.engine.compatibility import stock_model
from vlmfix.engine.gating import BOTH
from vlmfix.engine.logits_processor import MethodLogitsProcessor
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.stats import EditStats, SequenceStats, Sums
from vlmfix.errors import UnsupportedError
from vlmfix.methods.search_space import Dimension

Stage = Literal["attention", "steering", "logits", "pruning", "vision", "image", "decoding", "baseline"]
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
        ValueError: a value of another type, `stage` or `provenance` is none of those that there are, or only
            one of `paper` and `provenance` says that it is published.
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
        for name in ("changes", "where", "decoding", "kernels", "families"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}")
        if type(self.forwards) not in (int, float) or not self.forwards >= 0:
            raise ValueError(f"forwards must be a number, 0 or more, got {self.forwards!r}")
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


@dataclass(frozen=True, kw_only=True)
class Method(MethodHooks):
    """A mitigation strategy; `with method(model): model.generate(...)` applies it.

    A method declares its numbers as fields, checks them in `__post_init__`, describes itself in `info`,
    names the values that switch it off in `identity_parameters`, and overrides the hooks that it needs. It
    never touches a model and keeps what it learns in `context.state`. Tensors of the hooks cover the tokens
    that are present in the layer; `context.layout_at(layer)` tells where the image and the text are among
    them.
    """

    name: ClassVar[str]
    """By which the command line and results call it; that of the class, in lower case, if not registered."""
    info: ClassVar[MethodInfo]
    attaches: ClassVar[bool] = True
    """Whether it acts inside one `model.generate`, and not on what is asked or how it is decoded alone."""
    search_space: ClassVar[Mapping[str, Dimension] | None] = None
    """Where `vlmfix tune` searches its parameters, by name; None: it does not try this method."""
    parameter_files: ClassVar[Sequence[str]] = ()
    """Parameters that name a file; results know it by its content."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
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

    @classmethod
    def parameter_names(cls) -> list[str]:
        """What can be set, `gate` and `act_on` last, where there is something to scale."""
        shared = ("gate", "act_on")
        own = [each.name for each in dataclasses.fields(cls) if each.init and each.name not in shared]
        return [*own, *shared] if cls.takes_gate() else own

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers by name, the text of the gate, if it has one, and the part on which it acts alone."""
        shared = {} if self.gate is None else {"gate": str(self.gate)}
        if self.act_on != BOTH:
            shared["act_on"] = self.act_on
        names = (name for name in self.parameter_names() if name not in ("gate", "act_on"))
        return {name: getattr(self, name) for name in names} | shared

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


class DetachedMethod(Method, ABC):
    """A strategy that cannot be attached to one `model.generate`."""

    attaches: ClassVar = False

    @property
    @abstractmethod
    def why_detached(self) -> str:
        """Why it cannot be attached, and what to do in its place, as the end of a sentence about it."""

    def __call__(
        self, model: PreTrainedModel, processor: ProcessorMixin | None = None
    ) -> AbstractContextManager[None]:
        """Refuses.

        Raises:
            UnsupportedError: always; the message says what to do in its place.
        """
        raise UnsupportedError(f"{type(self).__name__} {self.why_detached}")
