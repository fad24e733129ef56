"""The function `vlmfix.explain`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.api import Methods, as_methods
from vlmfix.engine.attach import attached_to
from vlmfix.engine.vision_cache import cached_vision
from vlmfix.errors import UnsupportedError
from vlmfix.explanation.arrays import MAPS
from vlmfix.explanation.objects import PictureObjects
from vlmfix.explanation.passes import Passes
from vlmfix.explanation.reading import Reader
from vlmfix.explanation.result import Explanation
from vlmfix.inference.pictures import ImageLike, open_images
from vlmfix.methods.base import Method
from vlmfix.recipes import Recipe

PROMPT = "Describe the image."
MAX_NEW_TOKENS = 64


def explain(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: ImageLike,
    prompt: str = PROMPT,
    method: Methods = None,
    *,
    answer: str | None = None,
    word: str | None = None,
    objects: PictureObjects | None = None,
    maps: Sequence[str] = (),
    faithfulness: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    name: str = "",
    progress: Callable[[str], object] | None = None,
) -> Explanation:
    """Show where a model looked while it answered a prompt about a picture, and what a method changes.

    The answer is written greedily, and then read again in one pass in which attention is seen; further passes
    cut paths between image, question and answer. With a method, its answer is written, and both answers are
    forced on it token by token. Nothing is changed in the model.

    Args:
        model: a stock image-text-to-text model, or a wrapper around one.
        processor: its processor.
        image: a picture or its path.
        prompt: what is asked.
        method: see `vlmfix.generate`; None: only the plain answer is explained.
        answer: a given text, which is explained in the place of the plain answer.
        word: the word of the answer that is explained in full: a word, its second mention as `word#2`, or
            the index of a token; None: an object that is not there, if `objects` tells, else the content
            word to which the image adds most.
        objects: what is in the picture; None: not known.
        maps: of `vlmfix.explanation.arrays.MAPS`, that must be there; (): what the model allows.
        faithfulness: whether the maps of the word are tested by deletion and insertion, which takes a few
            hundred short passes.
        max_new_tokens: length limit of the answers, in tokens.
        name: what the model is called.
        progress: called with what is being done.

    Raises:
        ValueError: the answer has no words, or no such word, or a picture, map or method is not what it must
            be.
        FileNotFoundError: no such picture.
        UnsupportedError: the model is not supported, or a map that is asked for cannot be made of it.
    """
    for each in maps:
        if each not in MAPS:
            raise ValueError(f"maps has {each!r}; use {', '.join(MAPS)}")
    if (isinstance(image, Sequence) and not isinstance(image, str)) or image is None:
        raise ValueError("one picture is explained at a time; pass a picture or its path as image")
    methods = _methods(method)
    [picture] = open_images(image)
    told = progress or (lambda what: None)
    reader = Reader(model, processor, picture, prompt)
    attachment = attached_to(reader.model)
    if attachment is not None and attachment.methods:
        raise UnsupportedError(
            f"{type(attachment.methods[0]).__name__} is attached to the model; leave its block, and give it "
            "as method"
        )
    with cached_vision(reader.model):
        return Passes(reader, methods, objects, told).explanation(
            answer, word, maps, max_new_tokens, name or _name(model), faithfulness=faithfulness
        )


def _methods(method: Methods) -> list[Method]:
    if isinstance(method, Recipe) or method == "auto":
        raise ValueError(
            "a recipe may decode with beams, which are not explained; name its methods, such as var+vhr"
        )
    return as_methods(method)


def _name(model: PreTrainedModel) -> str:
    return str(getattr(model, "name_or_path", "") or type(model).__name__)
