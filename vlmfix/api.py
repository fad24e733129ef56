"""Text in, text out: prompts and images through any model, with or without a method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial, reduce
from typing import Any, overload

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine import compatibility
from vlmfix.engine.capabilities import ChangesPictures
from vlmfix.engine.combination import check_combination
from vlmfix.inference.batch import Show, answer_batch
from vlmfix.inference.conversation import Conversation, open_conversations, read_messages
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.output import Answer
from vlmfix.inference.pictures import ImageLike, Images, listed
from vlmfix.methods.base import Method
from vlmfix.methods.grammar import make_methods, parse_methods
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.methods.registry import AUTO
from vlmfix.recipes import Recipe, find_recipe

Methods = Method | Recipe | str | Sequence[Method | str] | None
Messages = Conversation | Sequence[Mapping[str, Any]]
"""A conversation as `apply_chat_template` takes it, see `vlmfix.inference.conversation.read_messages`."""


@overload
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageLike | None,
    prompts: str,
    method: Methods = ...,
    **kwargs: Any,
) -> str: ...


@overload
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageLike | Sequence[Images] | None,
    prompts: str | Sequence[str],
    method: Methods = ...,
    **kwargs: Any,
) -> list[str]: ...


@overload
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    messages: Messages,
    method: Methods = ...,
    **kwargs: Any,
) -> str: ...


@overload
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    messages: Sequence[Messages],
    method: Methods = ...,
    **kwargs: Any,
) -> list[str]: ...


def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageLike | Sequence[Images] | None = None,
    prompts: str | Sequence[str] | None = None,
    method: Methods = None,
    *,
    messages: Messages | Sequence[Messages] | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    on_refinement: Callable[[Any], None] | None = None,
    on_answer: Callable[[Answer], None] | None = None,
    **generate_kwargs: Any,
) -> str | list[str]:
    """Answer prompts about images.

    Args:
        model: a stock image-text-to-text model, or a wrapper around one, such as a PEFT model.
        processor: its processor.
        images: one a prompt: a picture, a path, a list of them for a prompt about several, or None for text
            only. A single picture serves all prompts. All are opened before the first is answered, so that
            a broken one costs no work; see `vlmfix.inference.pictures.open_images` for what the model is
            shown.
        prompts: what the user asks, without any template; a single one is asked about every image.
        method: a method, the name of one (at its defaults), or several of either, attached in that order; a
            name may be several joined by `+`, such as "var+vhr". None or "greedy" is plain decoding. With one
            that asks several times, such as CARVE, the others act in all its passes. Or a recipe, or "auto"
            for that of the checkpoint: its methods and its decoding, for no other checkpoint.
        messages: in the place of images and prompts, a conversation as `apply_chat_template` takes it, or a
            list of conversations: messages `{"role": ..., "content": ...}` of "system" (the first alone),
            "user" and "assistant", the last of the user. A content is a text or a list of items
            `{"type": "text", "text": ...}`, `{"type": "image", "image": ...}` (a picture or path; also
            "path" or "url" of a local file) and `{"type": "video", "video": [...]}` (frames, or a folder of
            them) in the order in which they are shown, as far as the chat template keeps it.
        max_new_tokens: length limit of an answer, in tokens.
        batch_size: prompts per forward pass; it changes the speed, not the answers.
        progress: called with the number of prompts just answered.
        on_refinement: called with what a method that asks several times found out about each prompt, in
            order: a `vlmfix.Refinement` (CARVE), `vlmfix.FusedAnswer` (MRFD), `vlmfix.DetailedCaption`
            (Patch Matters) or `vlmfix.ShieldedAnswer` (SHIELD).
        on_answer: called with each answer in order: its tokens, whether the model ended it, and the reasoning
            before it, if there is any.
        **generate_kwargs: for `model.generate`, for instance `num_beams` or `do_sample`; one sequence a
            prompt. Without any, decoding is greedy: what the checkpoint's generation_config says of choosing
            tokens (sampling, beams, penalties, banned tokens) does not apply, see
            `vlmfix.inference.decoding`.

    Returns:
        The answers in the order of the prompts; a single text if both `images` and `prompts` are single. Of a
        model that reasons first, what follows the reasoning; "", with a warning, where it did not end within
        the length limit.

    Raises:
        ValueError: numbers of images and prompts that do not go together, an unknown method, a broken image,
            or what is neither a picture nor a path; a recipe of another checkpoint or that other arguments
            contradict, or none for "auto".
        FileNotFoundError: no such image.
        UnsupportedError: the model or the way of decoding does not go with the method.
    """
    single, asked = _conversations(images, prompts, messages)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
    if generate_kwargs.get("num_return_sequences", 1) != 1:
        raise ValueError("num_return_sequences must be 1: one text a prompt; call model.generate for more")
    model = compatibility.stock_model(model)
    recipe = find_recipe(model) if isinstance(method, str) and method == AUTO else method
    if isinstance(recipe, Recipe):
        recipe.check(model)
        generate_kwargs, methods = recipe.generate_kwargs(generate_kwargs), recipe.make_methods()
    else:
        methods = as_methods(recipe)
    check_combination(methods)
    asking = [each for each in methods if isinstance(each, MultiPassMethod)]
    wanted = decoding_under(methods, {**generate_kwargs, "max_new_tokens": max_new_tokens})
    generate_kwargs = plain_decoding(model, wanted)
    asked = [each.asking(partial(prompt_under, methods)) for each in asked]
    size = 1 if asking else batch_size
    if len(asked) > size:  # a broken picture must not show after an hour of work
        for each in {each.identity: each for each in asked}.values():
            open_conversations([each])
    answers: list[Answer] = []
    with ExitStack() as stack:
        for applied in methods:
            if applied.attaches:
                stack.enter_context(applied(model, processor))
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            if asking:
                refinement = asking[0].run_conversation(model, processor, batch[0], **generate_kwargs)
                final = getattr(refinement, "final", None)
                written = [Answer(refinement.answer, (), 0, True) if final is None else final]
                if on_refinement is not None:
                    on_refinement(refinement)
            else:
                show = pictures_under(methods, processor)
                written = answer_batch(model, processor, batch, show, **generate_kwargs)
            answers += written
            if on_answer is not None:
                for answer in written:
                    on_answer(answer)
            if progress is not None:
                progress(len(batch))
    if unreached := sum(not answer.reached for answer in answers):
        warnings.warn(
            f"{unreached} of {len(answers)} answers were not reached: the reasoning before them did not end "
            f"within max_new_tokens={max_new_tokens}; raise it",
            stacklevel=2,
        )
    texts = [answer.text.strip() for answer in answers]
    return texts[0] if single else texts


def prompt_under(methods: Sequence[Method], text: str) -> str:
    """What is asked in place of `text` under the methods, in their order."""
    return reduce(lambda asked, method: method.prompt(asked), methods, text)


def pictures_under(methods: Sequence[Method], processor: ProcessorMixin) -> Show | None:
    """What is shown in the place of pictures under the methods; None: these."""
    changing = [each for each in methods if isinstance(each, ChangesPictures) and not each.is_identity]
    return partial(changing[0].pictures, processor=processor) if changing else None


def decoding_under(methods: Sequence[Method], generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `model.generate` under the methods, in their order, given those without any."""
    return reduce(lambda kwargs, method: method.decoding(kwargs), methods, dict(generate_kwargs))


def as_methods(method: Method | str | Sequence[Method | str] | None) -> list[Method]:
    """The methods that `method` names, in order."""
    if method is None:
        return []
    several = [method] if isinstance(method, Method | str) else list(method)
    for each in several:
        if not isinstance(each, Method | str):
            raise ValueError(f"{each!r} is no method and no name of one; a recipe stands alone, in no list")
    return [
        made
        for each in several
        for made in (make_methods(parse_methods(each)) if isinstance(each, str) else [each])
    ]


def _conversations(
    images: ImageLike | Sequence[Images] | None,
    prompts: str | Sequence[str] | None,
    messages: Messages | Sequence[Messages] | None,
) -> tuple[bool, list[Conversation]]:
    """What is asked, and whether it is a single question."""
    if messages is None:
        if prompts is None:
            raise ValueError("there is nothing to answer; pass prompts, with images, or messages")
        single = isinstance(prompts, str) and (images is None or isinstance(images, ImageLike))
        return single, [Conversation.of(*pair) for pair in _pairs(images, prompts)]
    if images is not None or prompts is not None:
        raise ValueError("messages hold their own images and prompts; leave the other two out")
    if isinstance(messages, Conversation):
        return True, [messages]
    several = isinstance(messages, Sequence) and messages and not isinstance(messages[0], Mapping)
    if not several:
        return True, [read_messages(messages)]
    found = []
    for number, each in enumerate(messages, 1):
        try:
            found.append(each if isinstance(each, Conversation) else read_messages(each))
        except ValueError as error:
            raise ValueError(f"conversation {number}: {error}") from error
    return False, found


def _pairs(
    images: ImageLike | Sequence[Images] | None, prompts: str | Sequence[str]
) -> list[tuple[Images, str]]:
    """Each prompt with its images; what is single serves all of the other."""
    if isinstance(images, ImageLike) or images is None:
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return [(images, text) for text in texts]
    if not isinstance(images, Sequence) or isinstance(images, bytes | bytearray):
        listed(images)  # says what it is
    if isinstance(prompts, str):
        return [(each, prompts) for each in images]
    if len(images) != len(prompts):
        raise ValueError(
            f"{len(images)} images and {len(prompts)} prompts; there must be as many, or one of either"
        )
    return list(zip(images, prompts, strict=True))
