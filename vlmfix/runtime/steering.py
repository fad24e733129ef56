"""Attaching methods to a stock model, and taking them off again."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin

from vlmfix.errors import UnsupportedError
from vlmfix.models.profiles import find_profile
from vlmfix.runtime import attention, support
from vlmfix.runtime.branches import unfollow_beams
from vlmfix.runtime.caches import named_arguments, read_cache
from vlmfix.runtime.callers import Turns, turns_of
from vlmfix.runtime.encoder import EncoderTap
from vlmfix.runtime.layout import PromptLayout
from vlmfix.runtime.modules import DecoderModules, Offsets, offsets, swap_offsets
from vlmfix.runtime.passes import Passes
from vlmfix.runtime.run import Run
from vlmfix.runtime.scores import Received
from vlmfix.runtime.vision import Encoded, encode_images

if TYPE_CHECKING:
    from vlmfix.methods.base import Method


class Block(AbstractContextManager[None], ContextDecorator):
    """A `with` block in which `method` steers `model`; several on one model compose in the order of entry.

    A block belongs to the thread or asyncio task that enters it, and to all that it starts inside, such as
    the thread that feeds a streamer. Others wait for its end with their calls and blocks, calls on one model
    take turns, and leaving waits for a call in progress: every result is that of a single thread.

    Args:
        model: a stock image-text-to-text model with a decoder-only language model, or a wrapper around one.
        method: what to attach; values it leaves open come from the profile of the checkpoint.
        processor: of the model, for methods that read the words of the prompt or change its pixels.
    """

    def __init__(self, model: PreTrainedModel, method: Method, processor: ProcessorMixin | None) -> None:
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
            model = support.stock_model(self._model)
            support.check_model(model)
            if not self._method.is_neutral:  # strength zero is the stock model, not an edit by nothing
                turns = turns_of(model)
                stack.callback(turns.leave, turns.enter(name))
                self._attach(model, turns, stack)
            self._undo = stack.pop_all()

    def _attach(self, model: PreTrainedModel, turns: Turns, stack: ExitStack) -> None:
        resolved = fitted(model, self._method, self._processor)
        object.__setattr__(resolved, "_sums", self._method._sums)
        with turns.call():
            steering = vars(model.get_decoder()).get(attention.ATTRIBUTE) or Steering(model)
            if steering.model is not model:
                raise UnsupportedError(
                    "another model with the same language model is being steered; leave that block first"
                )
            steering.attach(resolved, self._processor)
        stack.callback(steering.detach, resolved)

    def __exit__(self, *_: object) -> None:
        """Take the method off, when a call in progress has ended."""
        if self._undo is not None:
            self._undo.close()
            self._undo = None


def fitted(model: PreTrainedModel, method: Method, processor: ProcessorMixin | None) -> Method:
    """`method` with every value filled in that depends on the checkpoint.

    Raises:
        UnsupportedError: it needs the processor, or the model is not supported.
        ValueError: a value does not fit the model, or nobody knows it.
    """
    support.check_model(model)
    if method.needs_processor and processor is None:
        name = type(method).__name__
        raise UnsupportedError(
            f"{name} needs the processor, for the words or the pixels of the prompt: 'with {name}()(model, "
            "processor):', or vlmfix.generate"
        )
    resolved = method.resolve(model.config, find_profile(model))
    modules = DecoderModules(model)
    if resolved.needs_plain_layers:
        modules.check_layers()
    if resolved.needs_final_norm:
        modules.check_final_norm()
    return resolved


@contextmanager
def alone(
    model: PreTrainedModel,
    method: Method,
    run: Run | None,
    scores: Tensor,
    copies: int,
    inputs: dict[str, Any],
    processor: ProcessorMixin | None,
) -> Iterator[Steering]:
    """Attach `method` for one pass of a run of its own, in which what is attached already acts, too.

    Args:
        model: whatever is attached to it.
        method: with every value filled in.
        run: to go on with; None: the pass reads the prompts.
        scores: what the method edits in place of the logits of this pass, `(sequences, vocabulary)`.
        copies: sequences of each prompt, which the text decoder reads, and not yet the model.
        inputs: of the prompts, as `generate` got them.
        processor: of the model, for methods that read the words of the prompt.

    Raises:
        UnsupportedError: the method does not go with one that is attached.
    """
    turns = turns_of(model)
    with turns.block(f"a logits processor of {type(method).__name__}"), turns.call():
        attached = vars(model.get_decoder()).get(attention.ATTRIBUTE)
        steering: Steering = attached or Steering(model)
        steering.check(method)
        aside = dict(vars(steering))
        steering.methods, steering._run = (*steering.methods, method), run
        steering.scores, steering.copies = scores, copies
        steering._processor, steering._prompt_ids = processor or steering._processor, inputs["input_ids"]
        steering._inputs = inputs
        steering._generating, steering._end_tokens = True, None
        steering._acting = threading.get_ident()
        try:
            if attached is None:
                steering._install()
            yield steering
        finally:
            if attached is None:
                steering._undo.close()
            else:
                vars(steering).update(aside)


class Steering:
    """What hangs on one model while at least one method steers it.

    Args:
        model: checked by `support.check_model`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder = model.get_decoder()
        self.image_token = support.image_token(model.config)
        self.video_token = support.video_token(model.config)
        self.modules = DecoderModules(model)
        self.kernel: str = self.decoder.config._attn_implementation
        self.methods: tuple[Method, ...] = ()
        self.scores: Tensor | None = None
        self.copies = 1
        self.layers_seen: set[int] = set()
        self._passes = Passes(self)
        self._turns = turns_of(model)
        self._acting: int | None = None  # the thread for which the run is there
        self._run: Run | None = None
        self._in_pass = False
        self._offsets = offsets(model)  # of those whose calls began before the block
        self._offsets_aside: Offsets | None = None
        self._wants_tuple = False
        self._calls_outside = 0
        self._processor: ProcessorMixin | None = None
        self._end_tokens: Tensor | None = None
        self._generating = False
        self._prompt_ids: Tensor | None = None
        self._inputs: dict[str, Any] = {}
        self._encoder: EncoderTap | None = None
        self._undo = ExitStack()

    @property
    def run(self) -> Run | None:
        """The run of the call in progress; None for every thread but that of the call."""
        return self._run if self._acting == threading.get_ident() else None

    @run.setter
    def run(self, run: Run | None) -> None:
        self._run = run

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuses: a copy would hang on the hooks of this model.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"{type(self.model).__name__} is inside a block of {self._names()}, whose hooks cannot be copied "
            "or pickled; copy or save the model outside of the block"
        )

    def _names(self) -> str:
        return ", ".join(type(method).__name__ for method in self.methods) or "a method"

    def check(self, method: Method) -> None:
        """Refuse a method that does not go with those that are attached.

        Raises:
            UnsupportedError: with the reason and the remedy.
        """
        name = type(method).__name__
        for other in self.methods:
            if type(other) is type(method):
                raise UnsupportedError(
                    f"{name} is attached to this model already; leave that block before entering another"
                )
            if method.owns_logits and other.owns_logits:
                raise UnsupportedError(
                    f"{type(other).__name__} defines the logits of this model already, and {name} would, "
                    "too; use one of them at a time"
                )
            for one, another in ((method, other), (other, method)):
                if one.decodes and another.owns_logits:
                    raise UnsupportedError(
                        f"{type(one).__name__} tries tokens and takes them back, which "
                        f"{type(another).__name__}, which defines the logits, does not follow; use one of "
                        "them at a time"
                    )
            if method.prunes and other.prunes:
                raise UnsupportedError(
                    f"{type(other).__name__} drops image tokens of this model already, and the counts of "
                    f"{name} would refer to tokens that are gone; use one pruning method at a time"
                )

    def attach(self, method: Method, processor: ProcessorMixin | None) -> None:
        """Add one method, after those that are attached; the first one installs the hooks."""
        if self._generating:
            raise UnsupportedError(
                f"{type(method).__name__} cannot be attached while generate is at work on the model; enter "
                "the block before the call"
            )
        self.check(method)
        if method.needs_encoder:
            self._encoder = EncoderTap(self.model)
        self._processor = processor or self._processor
        if not self.methods:
            try:
                self._install()
            except BaseException:
                self._undo.close()
                raise
        self._end_run()
        self.methods += (method,)
        if method.needs_encoder and self._encoder is not None:
            self._encoder.install()

    def detach(self, method: Method) -> None:
        """Take one method off; the last one leaves the model as it was found."""
        with self._turns.call():
            self._end_run()
            self.methods = tuple(other for other in self.methods if other is not method)
            if method.needs_encoder and self._encoder is not None:
                self._encoder.remove()
                self._encoder = None
            if not self.methods:
                self._undo.close()

    def _install(self) -> None:
        attention.register()
        # First, and gone last: whoever looks at the configuration meanwhile finds out why it is as it is.
        self._set(self.decoder, attention.ATTRIBUTE, self)
        for module in self.decoder.modules():
            if isinstance(module, PreTrainedModel):
                # Not by the public setter, which may look for kernels anew.
                self._undo.callback(
                    setattr, module.config, "_attn_implementation", module.config._attn_implementation
                )
        self.decoder.set_attn_implementation(attention.NAME)
        if self.decoder.config._attn_implementation != attention.NAME:
            raise UnsupportedError(
                f"{type(self.decoder).__name__} does not use the attention registry of transformers, so that "
                "no method can see its attention"
            )
        for index, layer in enumerate(self.decoder.layers):
            self._set(layer.self_attn, attention.ATTRIBUTE, self)
            before_layer = functools.partial(self._passes.before_layer, index)
            self._undo.callback(layer.register_forward_pre_hook(before_layer, with_kwargs=True).remove)
        before, after = self._passes.before_decoder, self._passes.after_decoder
        self._undo.callback(self.decoder.register_forward_pre_hook(before, with_kwargs=True).remove)
        self._undo.callback(self.decoder.register_forward_hook(after, with_kwargs=True).remove)
        self._undo.callback(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True).remove)
        self._undo.callback(self.model.register_forward_hook(self._after_model).remove)
        self._undo.callback(self.model.register_forward_hook(self._end_pass, always_call=True).remove)
        self._calls_outside = self._calls_of_generate()
        self._undo.callback(lambda: swap_offsets(self._offsets))
        self._set(self.model, "generate", self._guarded(self.model.generate))
        self._set(self.model, "init_continuous_batching", support.refuse_continuous_batching)

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of this instance; undone, it is what it was, or gone."""
        attributes = vars(module)
        if name in attributes:
            self._undo.callback(attributes.__setitem__, name, attributes[name])
        else:
            self._undo.callback(attributes.pop, name)
        attributes[name] = value

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
        if self._generating:
            raise UnsupportedError(
                "generate was called inside a generate call on the same model, for instance by a logits "
                "processor or a stopping criterion, which methods do not follow; do it before or after"
            )
        named = named_arguments(type(self.model).generate, args, kwargs)
        support.check_uncompiled(self.model)
        support.check_generate(self.model, named)
        for method in methods:
            method.check_generate(named)
        self._end_run()
        self._forget_images()
        self._generating, self._acting = True, threading.get_ident()
        self._prompt_ids = named.get("input_ids", named.get("inputs"))
        self._inputs = named
        self._end_tokens = support.end_tokens(self.model, named)
        try:
            output = generate(*args, **kwargs)
            if self.methods != methods:
                raise UnsupportedError(
                    "a block was left while generate was at work in it; leave it afterwards"
                )
        except BaseException:
            self._end_run(failed=True)
            raise
        finally:
            self._end_run()
            self._forget_images()
            self._generating, self._acting = False, None
            self._prompt_ids = self._end_tokens = None
            self._inputs = {}
        return output

    def _before_model(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Begin a pass: learn its phase, and the layout of a prompt that is new."""
        named = named_arguments(type(self.model).forward, args, kwargs)
        cache = read_cache(named)
        if not self._is_own_call and not self._begin_pass(cache):
            return None
        support.check_pass(self.model)
        self._learn(named, cache)
        self._wants_tuple = named.get("return_dict", self.model.config.return_dict) is False
        return ((), {**named, "return_dict": True}) if self._wants_tuple else None

    @property
    def _is_own_call(self) -> bool:
        return self._generating and self._acting == threading.get_ident()

    def _begin_pass(self, cache: DynamicCache | None) -> bool:
        """Wait for the turn of a pass outside `generate`, and tell whether it is one of the block.

        A pass of another caller goes on plainly if it goes on from what was read before the block.
        """
        is_others = not self._turns.is_here
        if is_others and (cache is None or cache.get_seq_length() == 0):
            self._turns.await_others()
            return False
        self._turns.begin(stranger=is_others)
        if not self.methods:  # the block was left meanwhile, and nothing will end the pass
            self._turns.end()
            return False
        self._in_pass = True
        if is_others:
            self._offsets_aside = swap_offsets(self._offsets)
            return False
        self._acting = threading.get_ident()
        self._refuse_calls_past_the_block()
        return True

    def _end_pass(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Let others call, whether or not the pass came to its end."""
        if self._in_pass and self._turns.is_mine:
            self._in_pass, self._acting = False, None
            if self._offsets_aside is not None:
                self._offsets, self._offsets_aside = swap_offsets(self._offsets_aside), None
            self._turns.end()

    def _calls_of_generate(self) -> int:
        """How many calls of the model's own `generate` this thread is inside of."""
        code = inspect.unwrap(type(self.model).generate).__code__
        calls, frame = 0, inspect.currentframe()
        while frame is not None:
            calls += frame.f_code is code and frame.f_locals.get("self") is self.model
            frame = frame.f_back
        return calls

    def _refuse_calls_past_the_block(self) -> None:
        """Refuse a pass in a `generate` of which the block knows nothing."""
        if self._calls_of_generate() > self._calls_outside:
            raise UnsupportedError(
                f"this call of generate went past the block of {self._names()}: it was bound before the "
                "block was entered, or called through the class; call model.generate(...) inside the block"
            )

    def refuse_bypass(self) -> None:
        """Refuse attention in the thread of the block that belongs to no run.

        Raises:
            UnsupportedError: with the remedy.
        """
        if self.methods and self._turns.is_here:
            raise UnsupportedError(
                f"the language model was called past the block of {self._names()}: by model.forward, "
                "model.model, get_decoder or a layer, in a thread that a wrapper started, or without the "
                "hooks of the model; call model(...) or model.generate(...)"
            )

    def _learn(self, kwargs: dict[str, Any], cache: DynamicCache | None) -> None:
        """Learn the phase of a pass from its arguments by name."""
        input_ids = kwargs.get("input_ids")
        tokens = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if tokens is None:
            return  # the model itself says best what it misses
        if self.run is not None and self.run.block is not None:
            return  # whoever set it knows the phase
        batch, queries = tokens.shape[:2]
        support.check_cache(cache)
        if self._is_prompt(queries, cache):
            self._begin_run(input_ids, kwargs)
        elif self.run is not None:
            self.run.step += 1
            if self._end_tokens is not None and input_ids is not None:
                self.run.alive &= ~torch.isin(input_ids[:, -1], self._end_tokens.to(input_ids.device))
        if self.run is not None and self.run.is_prefill:
            batch *= self.copies
        if self.run is not None and batch != self.run.layout.batch_size:
            raise UnsupportedError(
                f"the batch changed from {self.run.layout.batch_size} to {batch} sequences during "
                "generation; methods need a constant batch"
            )
        if self.run is not None:
            kept = kwargs.get("logits_to_keep")
            self.run.wants_last_logits = isinstance(kept, int) and kept == 1

    def _encode_images(self, images: Sequence[Mapping[str, Tensor]]) -> list[Encoded]:
        """What the vision encoder makes of other images than those of the prompt, whose attention stays."""
        if self._encoder is None:
            return encode_images(self.model, images)
        own = self._encoder.images, self._encoder.videos
        encoded = encode_images(self.model, images)
        self._encoder.images, self._encoder.videos = own
        return encoded

    def _forget_images(self) -> None:
        if self._encoder is not None:
            self._encoder.forget()

    def _begin_run(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> None:
        self._end_run()
        if not self._generating:
            self._forget_images()
        image_tokens, video_tokens = self._visual_tokens(input_ids, kwargs)
        layout = PromptLayout.from_image_tokens(image_tokens, kwargs.get("attention_mask"))
        layout = layout.repeat(self.copies)
        video_tokens = video_tokens.repeat_interleave(self.copies, dim=0) & layout.image_tokens
        ids = None if input_ids is None else input_ids.repeat_interleave(self.copies, dim=0)
        copies = 1 if self._prompt_ids is None else layout.batch_size // len(self._prompt_ids)
        if ids is None and self._prompt_ids is not None:
            ids = self._prompt_ids.repeat_interleave(copies, dim=0)
        self.run = Run(
            layout,
            num_layers=len(self.decoder.layers),
            prompt_ids=None if ids is None or ids.shape != layout.image_tokens.shape else ids,
            image_token=self.image_token,
            video_tokens=video_tokens,
            processor=self._processor,
            inputs=self._inputs or kwargs,
            copies=copies,
            config=self.model.config,
            encode_images=self._encode_images,
            embed_tokens=self.model.get_input_embeddings(),
            encoder=self._encoder,
            modules=self.modules,
        )
        self.layers_seen = set()
        for method in self.methods:
            method.begin(self.run)
        self.run.taps = frozenset(layer for method in self.methods for layer in method.taps(self.run))

    @contextmanager
    def part(self, rows: slice) -> Iterator[Run]:
        """Within the block, passes read on behind some of the prompts alone."""
        whole = self.run
        assert whole is not None
        self.run = whole.part(rows)
        try:
            yield self.run
        finally:
            self.run = whole

    def _end_run(self, *, failed: bool = False) -> None:
        """Hand what the methods did in the run over to them; what they did in half a run is no activity."""
        run, self._run = self._run, None
        if run is None:
            return
        unfollow_beams(run)
        if not failed and not run.is_prefill:  # a prefill that failed is no run
            for method in self.methods:
                method.end(run)

    def _is_prompt(self, queries: int, cache: DynamicCache | None) -> bool:
        """Whether a pass of so many tokens reads prompts, and not the next token of those read before.

        Raises:
            UnsupportedError: it is neither.
        """
        run = self.run
        seen = 0 if cache is None else cache.get_seq_length()
        if seen == 0:
            if run is None or not self._generating:
                return True
            if cache is None and run.cache is None and queries == run.layout.length + run.step + 1:
                return False  # with use_cache=False every step reads the whole sequence again
            raise UnsupportedError(
                f"a pass of {queries} tokens without the cache of the prompt ({run.layout.length} tokens) "
                "arrived inside a generate call, and methods cannot tell what it is: either something that "
                "was passed to generate calls the model by itself, which it should do outside the block, or "
                f"transformers {transformers.__version__} passes its cache in a way that vlmfix does not know"
            )
        if run is None:
            raise UnsupportedError(
                "generation starts from a filled cache, whose prompt the method has not seen; pass the "
                "whole prompt without a cache"
            )
        if cache is not run.cache:
            raise UnsupportedError(
                "the step goes on from another cache than that of the prompt read last, which the method "
                "does not follow; read the prompt and go on from the cache of its output"
            )
        if queries != 1:
            raise UnsupportedError(
                f"a step of {queries} tokens on a filled cache (chunked prefill or assisted decoding) is not "
                "supported by methods; generate one token at a time"
            )
        present = run.layout_at(0).length + run.step
        if seen != present:
            raise UnsupportedError(
                f"the cache holds {seen} tokens, and {present} have been read under the method; do not crop "
                "or extend the cache between steps, but read the prompt anew"
            )
        return False

    def _visual_tokens(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The placeholders of images and videos, and those of videos alone, `(batch, prompt)` bool each.

        Those of embeddings come from the ids beside them, or from placeholders not yet filled.
        """
        if input_ids is None:
            embeddings, ids = kwargs["inputs_embeds"], self._prompt_ids
            batch, length = embeddings.shape[:2]
            if ids is not None and ids.shape[1] == length and batch % ids.shape[0] == 0:
                input_ids = ids.repeat_interleave(batch // ids.shape[0], dim=0)

        def is_token(token: int | None) -> Tensor:
            if input_ids is not None:
                return torch.zeros_like(input_ids).bool() if token is None else input_ids == token
            if token is None:
                return embeddings.new_zeros(batch, length, dtype=torch.bool)
            placeholder = self.model.get_input_embeddings()(torch.tensor([token], device=embeddings.device))
            return (embeddings == placeholder).all(dim=-1)

        videos = is_token(self.video_token)
        visual = is_token(self.image_token) | videos
        if input_ids is None and not bool(visual.any()):
            raise UnsupportedError(
                "the prompt is given as inputs_embeds with the image features in it, so that the image "
                "positions cannot be known; pass the input_ids of the same prompt to generate as well"
            )
        return visual, videos

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Let methods edit the logits, which only the prompts keep, and count the step."""
        if self._acting != threading.get_ident():
            return None
        edited = self._edit(output)
        return edited.to_tuple() if self._wants_tuple else edited

    def _edit(self, output: Any) -> Any:
        missed = set(range(len(self.decoder.layers))) - self.layers_seen
        if missed and self.decoder.config._attn_implementation != attention.NAME:
            raise UnsupportedError(
                "the attention implementation of the model was changed inside the block to "
                f"{self.decoder.config._attn_implementation!r}, where methods do not see it; set it before "
                "the block"
            )
        if missed:
            raise UnsupportedError(
                f"{type(self.decoder).__name__} did not call the attention registry in layers "
                f"{sorted(missed)}, so that no method can see its attention"
            )
        run = self.run
        if run is None:
            return output
        owners = [method for method in self.methods if method.owns_logits]
        if owners:
            rows = run.layout.batch_size
            last = output.logits[:, -1]
            own, others = last[:rows].float(), last[rows:].float().split(rows) if len(last) > rows else ()
            received = None
            if self.scores is not None:
                received = Received.of(self.scores, last[:rows], type(owners[-1]).__name__)
                own = received.logits
            for method in owners:
                edited = method.edit_logits(run, own, others)
                run.counts_of(method).divergence.compare(own, edited)
                own = edited
            if (
                received is None
            ):  # float32, as `generate` reads them: the mix would lose its order in bfloat16
                output.logits = torch.cat([output.logits[:rows, :-1].float(), own[:, None]], dim=1)
            else:
                output.logits = received.processed(own)[:, None]
        for method in self.methods:
            if method.decodes:  # its steps end when a token is chosen
                continue
            taken = torch.ones_like(run.alive)
            for skipped in method.skipped(run).values():
                taken &= ~skipped
            run.counts_of(method).end_step(run.alive, taken, is_prefill=run.step == 0)
        return output
