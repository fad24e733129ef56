"""Real processors of the types around a word-level tokenizer made here, and sizes of their pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from tests.support.zoo.pictures import Draw
from tests.support.zoo.shrink import FIRST_FREE, IMAGE_SIZE, IMAGE_TOKEN, PATCH, VOCABULARY
from vlmfix.models.loading import image_only

SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
CROPPED = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": SQUARE}
AREA = {"size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 84}, "patch_size": PATCH}
ROLES = ("user", "assistant", "system")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% if message['content'] is string %}"
    "{{ message['content'] }} {% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "ITEM{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """How to make the processor of a type.

    Attributes:
        image: the token that stands for a picture.
        item: what the chat template writes for one picture; `image` if empty.
        names: attributes that the processor asks the tokenizer for, as `image_token`, and their tokens.
        ids: keys of the configuration, and the token that stands there.
        others: further tokens of the layout of a picture.
        processor, pictures, extractor: class names, of the whole and its parts for pictures and sounds.
        options, sizes: their arguments.
        call: arguments of every call of the processor.
        draw: stands in for a processor that cannot be had.
        begins: whether the tokenizer puts a BOS in front, for its processor does not.
        joined: the dimension of pixels along which pictures are joined.
        token_types: whether `draw` needs `mm_token_type_ids` too.
        nested: whether it takes pictures as a list of each prompt only.
    """

    processor: str = ""
    pictures: str = ""
    draw: Draw | None = None
    extractor: str = ""
    image: str = "<image>"
    item: str = ""
    names: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    nested: bool = False
    token_types: bool = False
    joined: int = 0
    begins: bool = True


def tokenizer(recipe: Recipe, numbers: dict[str, int]) -> PreTrainedTokenizerFast:
    """Words `w5` to `w96`, the roles, and the tokens of a recipe.

    Args:
        numbers: ids that the configuration gives to tokens; the others take the free ones.
    """
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"w{number}": number for number in range(5, 97)}}
    words |= {role: 97 + index for index, role in enumerate(ROLES)}
    wanted = dict.fromkeys([*numbers, *recipe.names.values(), *recipe.others])
    free = iter(range(FIRST_FREE, VOCABULARY))
    markers = {
        token: numbers[token] if token in numbers else next(free) for token in wanted if token not in words
    }
    taken = {*words.values(), *markers.values()}
    # Tokens that a processor adds get numbers behind these, where there must be no gap.
    fillers = {f"<unused{number}>": number for number in range(VOCABULARY) if number not in taken}
    core = Tokenizer(WordLevel({**words, **markers, **fillers}, unk_token="<unk>"))
    core.add_special_tokens([token for token in markers if not token.isdigit()])  # words contain digits
    core.pre_tokenizer = WhitespaceSplit()
    if recipe.begins:
        core.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=recipe.names,
    )


def make(recipe: Recipe, numbers: dict[str, int]) -> ProcessorMixin:
    """The processor; without its part for videos, which needs torchvision."""
    stock = _class(recipe.processor)
    pictures = _class(recipe.pictures)(**recipe.sizes)
    needs_video = "video_processor" in stock.get_attributes()
    made: Any = image_only(stock) if needs_video else stock
    if needs_video:
        made.video_processor = pictures  # MiniCPM-V reads settings from it before it is asked for a video
    parts: dict[str, Any] = {"image_processor": pictures, "tokenizer": tokenizer(recipe, numbers)}
    if recipe.extractor:
        parts["feature_extractor"] = _class(recipe.extractor)()
    if "qformer_tokenizer" in stock.get_attributes():
        parts["qformer_tokenizer"] = tokenizer(Recipe(), {})
    processor = made(**parts, **recipe.options)
    processor.chat_template = TEMPLATE.replace("ITEM", recipe.item or recipe.image)
    return processor


def numbers(recipe: Recipe, config: dict[str, Any]) -> dict[str, int]:
    """The ids that a configuration gives to tokens of a recipe."""
    result = {recipe.image: IMAGE_TOKEN}
    for key, tokens in recipe.ids.items():
        if isinstance(tokens, str):
            result[tokens] = config[key]
        else:
            result |= zip(tokens, config[key], strict=True)
    return result


@cache
def _class(name: str) -> Any:
    """A class of transformers."""
    return getattr(transformers, name)
