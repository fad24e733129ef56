"""Text in, text out: prompts and images through any model, with or without a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from typing import Any, overload

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine import compatibility
from vlmfix.engine.combination import check_combination
from vlmfix.inference.batch import answer_batch, identity
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.pictures import (
    ImageLike,
    Images,
    listed,
    open_images,
)
from vlmfix.methods.base import Method, MultiPassMethod
from vlmfix.methods.grammar import make_methods, parse_methods
from vlmfix.methods.image.carve.crop import Refinement
from vlmfix.methods.registry import AUTO
from vlmfix.recipes import Recipe, find_recipe


@overload
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageLike | None,
    prompts: str,
    method: Method | Recipe | str | Sequence[Method | str] | None = ...,
    **kwargs: Any,
) -> str: ...


@overload
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageLike | Sequence[Images] | None,
    prompts: str | Sequence[str],
    method: Method | Recipe | str | Sequence[Method | str] | None = ...,
    **kwargs: Any,
) -> list[str]: ...


def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageLike | Sequence[Images] | None,
    prompts: str | Sequence[str],
    method: Method | Recipe | str | Sequence[Method | str] | None = None,
    *,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    on_refinement: Callable[[Refinement], None] | None = None,
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
        max_new_tokens: length limit of an answer, in tokens.
        batch_size: prompts per forward pass; it changes the speed, not the answers.
        progress: called with the number of prompts just answered.
        on_refinement: called with what CARVE found out about each prompt, in order.
        **generate_kwargs: for `model.generate`, for instance `num_beams` or `do_sample`; one sequence a
            prompt. Without any, decoding is greedy: what the checkpoint's generation_config says of choosing
            tokens (sampling, beams, penalties, banned tokens) does not apply, see
            `vlmfix.inference.decoding`.

    Returns:
        The answers in the order of the prompts; a single text if both `images` and `prompts` are single.

    Raises:
        ValueError: numbers of images and prompts that do not go together, an unknown method, a broken image,
            or what is neither a picture nor a path; a recipe of another checkpoint or that other arguments
            contradict, or none for "auto".
        FileNotFoundError: no such image.
        UnsupportedError: the model or the way of decoding does not go with the method.
    """
    single = isinstance(prompts, str) and (images is None or isinstance(images, ImageLike))
    pairs = _pairs(images, prompts)
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
    pairs = [(pictures, prompt_under(methods, text)) for pictures, text in pairs]
    size = 1 if asking else batch_size
    if len(pairs) > size:  # a broken picture must not show after an hour of work
        for pictures in {identity(pictures): pictures for pictures, _ in pairs}.values():
            open_images(pictures)
    answers: list[str] = []
    with ExitStack() as stack:
        for each in methods:
            if each.attaches:
                stack.enter_context(each(model, processor))
        for start in range(0, len(pairs), size):
            batch = pairs[start : start + size]
            if asking:
                refinement = asking[0].run(model, processor, *batch[0], **generate_kwargs)
                answers.append(refinement.answer)
                if on_refinement is not None:
                    on_refinement(refinement)
            else:
                written = answer_batch(model, processor, batch, **generate_kwargs)
                answers += [each.text.strip() for each in written]
            if progress is not None:
                progress(len(batch))
    return answers[0] if single else answers


def prompt_under(methods: Sequence[Method], text: str) -> str:
    """What is asked in place of `text` under the methods, in their order."""
    return reduce(lambda asked, method: method.prompt(asked), methods, text)


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
