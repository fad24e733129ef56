"""What hangs on a model while methods are attached to it."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine import compatibility, tokens
from vlmfix.engine.branches import unfollow_beams
from vlmfix.engine.buffered_cache import take_room
from vlmfix.engine.caches import named_arguments
from vlmfix.engine.call import Call
from vlmfix.engine.capabilities import (
    ChoosesTokens,
    EditsStream,
    EditsVisionEncoder,
    ReadsEarlyExits,
    ReadsVisionAttention,
    edits_encoder,
    reads_encoder,
)
from vlmfix.engine.combination import check_pair
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.gating import GateState
from vlmfix.engine.installation import Installation
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.modules import DecoderModules
from vlmfix.engine.outside_passes import OutsidePasses, names_of
from vlmfix.engine.phases import visual_tokens
from vlmfix.engine.rereading import read_anew
from vlmfix.engine.rows_of_runs import settle
from vlmfix.engine.state import Encoded
from vlmfix.engine.static_step import StaticSteps
from vlmfix.engine.vision_attention import EncoderTap
from vlmfix.engine.vision_cache import encode_images, with_pixel_values
from vlmfix.engine.vision_encoder import Removable, VisionEncoder
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import attention_layers, image_arguments, memory_of, text_decoder


class Attachment:
    """What hangs on one model while at least one method is attached to it.

    Args:
        model: checked by `compatibility.check_model`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder = text_decoder(model)
        self.image_token = tokens.image_token(model.config)
        self.video_token = tokens.video_token(model.config)
        self.modules = DecoderModules(model)
        self._window = memory_of(self.decoder).window
        self._attending = attention_layers(self.decoder)
        self.kernel: str = self.decoder.config._attn_implementation
        self.methods: tuple[MethodHooks, ...] = ()
        self.outside = OutsidePasses(self, model)
        self._installation = Installation(self, model)
        self.static = StaticSteps(self, model, self._installation.hook_decoder)
        self._turns = self.outside.turns
        self.call = Call()
        self._processor: ProcessorMixin | None = None
        self._encoder: EncoderTap | None = None
        self._edited_encoder: VisionEncoder | None = None
        self._of_encoder: dict[int, Sequence[Removable]] = {}

    @property
    def context(self) -> DecodeContext | None:
        """The run of the call in progress; None for every thread but that of the call."""
        return self.call.context if self.call.thread == threading.get_ident() else None

    @property
    def stock_rows(self) -> int:
        """Rows of the prompts in this pass; those of other calls are all of the model's own."""
        # The steps that are compiled are those of the call, and a compiler does not ask for the thread.
        context = self.call.context if torch.compiler.is_compiling() else self.context
        return sys.maxsize if context is None else context.engine.stock_rows

    @property
    def copies(self) -> int:
        """Sequences of each prompt, which the text decoder reads, and not yet the model."""
        return self.call.copies

    @property
    def layers_seen(self) -> set[int]:
        """Layers whose attention came to the methods since the prompts were read."""
        return self.call.layers_seen

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuses: a copy would hang on the hooks of this model.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"{type(self.model).__name__} is inside a block of {names_of(self.methods)}, whose hooks cannot "
            "be copied or pickled; copy or save the model outside of the block"
        )

    def check(self, method: MethodHooks) -> None:
        """Refuse a method that does not go with those that are attached.

        Raises:
            UnsupportedError: with the reason and the remedy.
        """
        compatibility.check_memory(self.decoder, [*self.methods, method])
        for other in self.methods:
            check_pair(other, method)

    def attach(self, method: MethodHooks, processor: ProcessorMixin | None) -> None:
        """Add one method, after those that are attached; the first one installs the hooks."""
        if self.call.generates:
            raise UnsupportedError(
                f"{type(method).__name__} cannot be attached while generate is at work on the model; enter "
                "the block before the call"
            )
        self.check(method)
        if isinstance(method, EditsStream):
            self._installation.stream.check(method)
        self._watch_encoder((*self.methods, method))
        hooks: Sequence[Removable] = ()
        try:
            if isinstance(method, EditsVisionEncoder) and edits_encoder(method):
                self._edited_encoder = VisionEncoder(self.model)
                hooks = method.hook_encoder(self._edited_encoder)
            self._processor = processor or self._processor
            if not self.methods:
                self._installation.install(self._guarded)
            if _adds_rows(method) and not any(map(_adds_rows, self.methods)):
                self._installation.take_few_rows()
        except BaseException:
            if not self.methods:
                self._installation.undo()
            for hook in hooks:
                hook.remove()
            if edits_encoder(method):
                self._edited_encoder = None
            self._watch_encoder(self.methods)
            raise
        self.end_run()
        self._of_encoder[id(method)] = hooks
        if isinstance(method, EditsStream):
            self._installation.stream.install((*self.methods, method))
        self.methods += (method,)

    def detach(self, method: MethodHooks) -> None:
        """Take one method off; the last one leaves the model as it was found."""
        with self._turns.call():
            self.end_run()
            self.methods = tuple(other for other in self.methods if other is not method)
            if isinstance(method, EditsStream):
                self._installation.stream.install(self.methods)
            for hook in self._of_encoder.pop(id(method), ()):
                hook.remove()
            self._watch_encoder(self.methods)
            if edits_encoder(method):
                self._edited_encoder = None
            if not self.methods:
                self._installation.undo()

    def _watch_encoder(self, methods: Sequence[MethodHooks]) -> None:
        """Read the attention of the vision encoder as long as one of these methods needs it.

        Raises:
            UnsupportedError: it is not read in this model, or a method needs more of it than there is.
        """
        reading = [each for each in methods if isinstance(each, ReadsVisionAttention) and reads_encoder(each)]
        if not reading:
            if self._encoder is not None:
                self._encoder.remove()
            self._encoder = None
            return
        tap = self._encoder or EncoderTap(self.model)
        for each in reading:
            if each.needs_class_token or each.reads_maps or each.encoder_layers:
                tap.check_class_token(type(each).__name__)
        if self._encoder is None:
            tap.install()
        self._encoder = tap
        tap.keeps_maps = any(each.reads_maps for each in reading)
        wanted = [item for each in reading for item in each.encoder_layers.items()]
        tap.read_layers({layer: (layer, True) in wanted for layer, _ in wanted})

    def _guarded(self, generate: Any) -> Any:
        """`generate` that refuses what cannot be kept right and marks where a call begins and ends."""

        @functools.wraps(generate)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if not self._turns.is_here:
                self._turns.await_others()
                return generate(*args, **kwargs)
            with self._turns.call():
                return self._generate(generate, args, kwargs)

        return guarded

    def _generate(self, generate: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of `generate` under the methods."""
        methods = self.methods
        if not methods:
            raise UnsupportedError(
                "this generate was taken from the model (or the model was copied) inside a block that has "
                "ended; call it inside the block, or take the generate of the model itself"
            )
        if self.call.generates:
            raise UnsupportedError(
                "generate was called inside a generate call on the same model, for instance by a logits "
                "processor or a stopping criterion, which methods do not follow; do it before or after"
            )
        kind: Any = type(self.model)  # with GenerationMixin, unknown to its type
        named = named_arguments(kind.generate, args, kwargs)
        compatibility.check_uncompiled(self.model)
        compatibility.check_generate(self.model, named)
        if compatibility.asks_for_static_cache(self.model, named):
            self.static.check(methods)
        compatibility.check_window(self.decoder, self._window, *tokens.lengths(self.model, named))
        for method in methods:
            if isinstance(method, ChoosesTokens):
                method.check_generate(named)
        self.end_run()
        self._forget_images()
        self.call = Call(
            generates=True,
            thread=threading.get_ident(),
            inputs=named,
            prompt_ids=named.get("input_ids", named.get("inputs")),
            end_tokens=tokens.end_tokens(self.model, named),
        )
        try:
            with read_anew(self.model, named):
                output = generate(*args, **kwargs)
            if self.methods != methods:
                raise UnsupportedError(
                    "a block was left while generate was at work in it; leave it afterwards"
                )
        except BaseException:
            self.end_run(failed=True)
            raise
        finally:
            self.end_run()
            self._forget_images()
            self.call = Call()
        return output

    def _encode_images(self, images: Sequence[Mapping[str, Tensor]]) -> list[Encoded]:
        """What the vision encoder makes of other images than those of the prompt, of which all that is known
        stays."""
        tap, edited = self._encoder, self._edited_encoder
        seen = None if tap is None else (tap.images, tap.videos)
        groups = None if edited is None else edited.groups
        encoded = encode_images(self.model, images)
        if tap is not None and seen is not None:
            tap.images, tap.videos = seen
        if edited is not None:
            edited.groups = groups
        return encoded

    def _forget_images(self) -> None:
        if self._encoder is not None:
            self._encoder.forget()
        if self._edited_encoder is not None:
            self._edited_encoder.groups = None

    def begin_run(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> None:
        self.end_run()
        if not self.call.generates:
            self._forget_images()
        prompt_ids = self.call.prompt_ids
        image_tokens, video_tokens = visual_tokens(self.model, kwargs, prompt_ids, self.call.inputs or kwargs)
        layout = PromptLayout.from_image_tokens(image_tokens, kwargs.get("attention_mask"))
        layout = layout.repeat(self.copies)
        video_tokens = video_tokens.repeat_interleave(self.copies, dim=0) & layout.image_tokens
        ids = None if input_ids is None else input_ids.repeat_interleave(self.copies, dim=0)
        copies = 1 if prompt_ids is None else layout.batch_size // len(prompt_ids)
        if ids is None and prompt_ids is not None:
            ids = prompt_ids.repeat_interleave(copies, dim=0)
        context = self.call.context = DecodeContext(
            layout,
            num_layers=len(self.decoder.layers),
            attention_layers=self._attending,
            prompt_ids=None if ids is None or ids.shape != layout.image_tokens.shape else ids,
            image_token=self.image_token,
            video_tokens=video_tokens,
            processor=self._processor,
            inputs=with_pixel_values(self.call.inputs or kwargs),
            copies=copies,
            config=self.model.config,
            image_arguments=image_arguments(self.model),
            encode_images=self._encode_images,
            embed_tokens=self.model.get_input_embeddings(),
            encoder=self._encoder,
            vision_encoder=self._edited_encoder,
            modules=self.modules,
        )
        if self.call.generates:
            context.engine.planned = max(1, tokens.lengths(self.model, self.call.inputs)[1])
        context.engine.encoded = kwargs.get("mm_encoder_outputs")
        context.engine.end_tokens = tokens.end_tokens(self.model, {})
        context.engine.gates = GateState.of(
            self.methods, self._attending, context.prompt_ids, self._processor
        )
        self.call.layers_seen = set()
        for method in self.methods:
            method.begin(context)
        context.engine.tapped_layers = frozenset(
            layer
            for method in self.methods
            if isinstance(method, ReadsEarlyExits)
            for layer in method.tapped_layers(context)
        )

    @contextmanager
    def part(self, rows: slice) -> Iterator[DecodeContext]:
        """Within the block, passes read on after some of the prompts alone."""
        whole = self.context
        assert whole is not None
        part = self.call.context = whole.part(rows)
        try:
            yield part
        finally:
            self.call.context = whole

    @contextmanager
    def beside(self, method: MethodHooks, call: Call, processor: ProcessorMixin | None) -> Iterator[None]:
        """Within the block, passes are those of another call, in which one method more acts."""
        aside = self.methods, self.call, self._processor
        self.methods, self.call, self._processor = (
            (*self.methods, method),
            call,
            processor or self._processor,
        )
        try:
            self._watch_encoder(self.methods)
            if len(self.methods) == 1:
                self._installation.install(self._guarded)
            yield
        finally:
            if len(self.methods) == 1:
                self._installation.undo()
            self.methods, self.call, self._processor = aside
            self._watch_encoder(self.methods)

    def end_run(self, *, failed: bool = False) -> None:
        """Hand what the methods did in the run over to them; what they did in half a run is no activity."""
        context, self.call.context = self.call.context, None
        if context is None:
            return
        settle(context)
        unfollow_beams(context)
        if context.engine.cache is not None:
            take_room(context.engine.cache)
        self.static.end()
        if not failed and not context.is_prefill:  # a prefill that failed is no run
            for run in [each.run for each in context.began] or [context]:
                self.end_sequences(run)

    def end_sequences(self, run: DecodeContext) -> None:
        """Hand what the methods did in the sequences of a run over to them, when all of these have ended."""
        for method in self.methods:
            method.end(run)

    def park(self) -> Call:
        """The call in progress, which goes on within `resumed`; the model may serve others until then."""
        parked, self.call = self.call, Call()
        return parked

    @contextmanager
    def resumed(self, call: Call) -> Iterator[None]:
        """Within the block, passes are those of a call that was parked."""
        with self._turns.call():
            self.end_run()
            self.call = call
            try:
                yield
            finally:
                self.park()


def _adds_rows(method: MethodHooks) -> bool:
    """Whether the model reads further rows beside those of the prompts under a method."""
    return isinstance(method, ReadsEarlyExits) or type(method).branches is not MethodHooks.branches
