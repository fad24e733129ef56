"""Blocks in which a method is attached to a model, and passes in which one acts by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine import compatibility, kernels
from vlmfix.engine.attachment import Attachment
from vlmfix.engine.call import Call
from vlmfix.engine.callers import Turns, turns_of
from vlmfix.engine.capabilities import ReadsEarlyExits, RunsLayerParts, UsesOutputHead, WritesAhead
from vlmfix.engine.gating import BOTH, reasoning_marks
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.modules import DecoderModules
from vlmfix.engine.stats import SequenceStats
from vlmfix.errors import UnsupportedError
from vlmfix.models.profiles import find_profile
from vlmfix.models.structure import text_decoder


class AttachmentBlock(AbstractContextManager[None], ContextDecorator):
    """A `with` block in which `method` is attached to `model`; several on one model compose in the order of
    entry.

    A block belongs to the thread or asyncio task that enters it, and to all that it starts inside, such as
    the thread that feeds a streamer. Others wait for its end with their calls and blocks, calls on one model
    take turns, and leaving waits for a call in progress: every result is that of a single thread.

    Args:
        model: a stock image-text-to-text model with a decoder-only language model, or a wrapper around one.
        method: what to attach; values it leaves open come from the profile of the checkpoint.
        processor: of the model, for methods that read the words of the prompt or change its pixels.
    """

    def __init__(self, model: PreTrainedModel, method: MethodHooks, processor: ProcessorMixin | None) -> None:
        self._model = model
        self._method = method
        self._processor = processor
        self._undo: ExitStack | None = None

    def __enter__(self) -> None:
        """Attach the method.

        Raises:
            UnsupportedError: the model, or the combination with what is attached already, is not supported;
                or another thread keeps a block on the model open and does nothing in it.
            ValueError: a value of the method does not fit the model, or nobody knows it.
        """
        name = type(self._method).__name__
        if self._undo is not None:
            raise UnsupportedError(f"this block of {name} has been entered and not left; make another one")
        with ExitStack() as stack:
            model = compatibility.stock_model(self._model)
            compatibility.check_model(model)
            compatibility.check_trusted(model, self._method)
            if not self._method.is_identity:  # strength zero is the stock model, not an edit by nothing
                turns = turns_of(model)
                stack.callback(turns.leave, turns.enter(name))
                self._attach(model, turns, stack)
            self._undo = stack.pop_all()

    def _attach(self, model: PreTrainedModel, turns: Turns, stack: ExitStack) -> None:
        with turns.call():
            attachment = attached_to(model) or Attachment(model)
            if attachment.model is not model:
                raise UnsupportedError(
                    "another model with the same language model has a method attached; leave that block first"
                )
            attachment.check(self._method)  # before what it lacks on this model, which would not help
            resolved = fitted(model, self._method, self._processor)
            object.__setattr__(resolved, "_sums", self._method._sums)
            attachment.attach(resolved, self._processor)
        stack.callback(attachment.detach, resolved)

    def __exit__(self, *_: object) -> None:
        """Take the method off, when a call in progress has ended."""
        if self._undo is not None:
            self._undo.close()
            self._undo = None


def attached_to(model: PreTrainedModel) -> Attachment | None:
    """What hangs on a model; None: nothing."""
    attachment: Attachment | None = vars(text_decoder(model)).get(kernels.ATTRIBUTE)
    return attachment


def sequence_stats(model: PreTrainedModel) -> dict[str, list[SequenceStats]]:
    """What the attached methods did so far in each sequence of the call in progress, by name.

    For whoever hands out the answer to one sequence while others of its batch go on.
    """
    attachment = attached_to(model)
    context = None if attachment is None else attachment.context
    if attachment is None or context is None:
        return {}
    acting: list[Any] = [method for method in attachment.methods if method.edits]  # with the names of methods
    return {each.name: context.counts_of(each).close(each.skipped(context)).latest for each in acting}


def end_sequences(model: PreTrainedModel, ended: Tensor) -> None:
    """Tell the attached methods that sequences of the call in progress have ended without an end token.

    Args:
        model: in a call of `generate`.
        ended: `(sequences,)` bool.
    """
    attachment = attached_to(model)
    if attachment is not None and attachment.context is not None:
        attachment.context.alive &= ~ended.to(attachment.context.alive.device)


def fitted(model: PreTrainedModel, method: MethodHooks, processor: ProcessorMixin | None) -> MethodHooks:
    """`method` with every value filled in that depends on the checkpoint.

    Raises:
        UnsupportedError: it needs the processor, or the model is not supported.
        ValueError: a value does not fit the model, or nobody knows it.
    """
    compatibility.check_model(model)
    if method.needs_processor and processor is None:
        name = type(method).__name__
        raise UnsupportedError(
            f"{name} needs the processor, for the words or the pixels of the prompt: 'with {name}()(model, "
            "processor):', or vlmfix.generate"
        )
    if method.act_on != BOTH:
        reasoning_marks(method, processor)
    resolved = method.resolved(model.config, find_profile(model))
    modules = DecoderModules(model)
    if isinstance(resolved, RunsLayerParts):
        modules.check_layers()
    if isinstance(resolved, UsesOutputHead | WritesAhead):
        modules.check_output_head()
    if isinstance(resolved, ReadsEarlyExits | UsesOutputHead) and resolved.needs_final_norm:
        modules.check_final_norm()
    return resolved


@contextmanager
def alone(
    model: PreTrainedModel, method: MethodHooks, call: Call, processor: ProcessorMixin | None
) -> Iterator[None]:
    """Attach `method` for one pass of a call of its own, in which what is attached already acts, too.

    Args:
        model: whatever is attached to it.
        method: with every value filled in.
        call: with the run to go on with; without one the pass reads the prompts.
        processor: of the model, for methods that read the words of the prompt.

    Raises:
        UnsupportedError: the method does not go with one that is attached.
    """
    turns = turns_of(model)
    with turns.block(f"a logits processor of {type(method).__name__}"), turns.call():
        attachment = attached_to(model) or Attachment(model)
        attachment.check(method)
        with attachment.beside(method, call, processor):
            yield
