"""A byte-level BPE tokenizer of the world's language, and the two chat templates."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from training.prompts import corpus
from vlmfix.evaluation.datasets.synthetic.scenes import sample_scene

WORDS = 1000
RESERVED = 12

_TEXTS = (
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
)
_IMAGES = (
    "{% if message.content is not string %}{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% endif %}{% endfor %}{% endif %}"
)

# Images first, then the parts of the text, each with a space, as in LLaVA-1.5; a system message stands before
# the first turn.
LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}" + _TEXTS + " "
    "{% elif message.role == 'user' %}USER: "
    + _IMAGES.replace("IMAGE", "<image>\n")
    + _TEXTS.replace("}}", "}} ")
    + "{% else %}ASSISTANT: {% generation %}"
    + _TEXTS
    + "</s>{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# The parts of the content in their order, numbered on request, as in Qwen2.5-VL, but without a system message
# of its own. Starts with <|endoftext|>: the first token is the attention sink, as the begin token in Llama.
QWEN_TEMPLATE = (
    "<|endoftext|>{% set seen = namespace(images=0, videos=0) %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}"
    + _TEXTS
    + "<|im_end|>{% endgeneration %}{% elif message.content is string %}{{ message.content }}<|im_end|>"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{% set seen.images = seen.images + 1 %}{% if add_vision_id %}Picture {{ seen.images }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' or 'video' in part %}"
    "{% set seen.videos = seen.videos + 1 %}{% if add_vision_id %}Video {{ seen.videos }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[f"<reserved {number}>" for number in range(RESERVED)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus([sample_scene(0, i, split="train") for i in range(3000)]), trainer)
    return tokenizer.to_str()


def build_tokenizer(
    special: dict[str, str], extra: dict[str, str], begin: str | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer with a family's special tokens in reserved places; `begin` is put before every text."""
    text = _trained()
    names = [*special.values(), *extra.values()]
    for number, name in enumerate(names):
        text = text.replace(f'"<reserved {number}>"', f'"{name}"')
    tokenizer = Tokenizer.from_str(text)
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            pair=f"{begin} $A $B",
            special_tokens=[(begin, tokenizer.token_to_id(begin))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        extra_special_tokens=extra,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
