"""The words of the last user are found in templates of many kinds, or refused where nobody can know."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

import vlmfix
from vlmfix.inference.chat import find_question, render

IMAGE = "<image>"
_TEXT = "{% for part in m.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}"
_EACH, _END = "{% for m in messages %}", "{% endfor %}"
_SYSTEM = "{% if m.role == 'system' %}"

CHATML = (
    _EACH + "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    + _TEXT
    + "<|im_end|>\n"
    + _END
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "llava": _EACH + "{% if m.role != 'system' %}{{ m.role.upper() }}: {% endif %}" + _TEXT + " " + _END
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "vicuna": "A chat. The assistant is kind. " + _EACH + "{% if m.role == 'user' %}USER: " + _TEXT
    + " {% elif m.role == 'assistant' %}ASSISTANT: " + _TEXT + "</s>{% endif %}" + _END
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "qwen": CHATML,
    "internvl": CHATML.replace("Be kind.", "You see."),
    "llama3": "<s>" + _EACH + "<|header|>{{ m.role }}<|/header|>\n\n" + _TEXT + "<|eot|>" + _END
    + "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}",
    "mistral": "<s>" + _EACH + "{% if m.role == 'user' %}[INST] " + _TEXT + " [/INST]"
    "{% elif m.role == 'assistant' %} " + _TEXT + "</s>{% else %}<<SYS>>\n" + _TEXT
    + "\n<</SYS>>\n\n{% endif %}" + _END,
    "gemma": "<s>{% if messages[0].role == 'system' %}{% set first = messages[0].content[0].text + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}" + _EACH
    + "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ first if loop.first else '' }}"
    + _TEXT + "<end_of_turn>\n" + _END + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
}  # fmt: skip
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", IMAGE]


class Processor:
    """A template and a tokenizer of bytes."""

    image_token = IMAGE

    def __init__(self, template: str | None) -> None:
        self.chat_template = template
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, additional_special_tokens=SPECIAL, clean_up_tokenization_spaces=False
        )

    def apply_chat_template(self, turns: Any, *, chat_template: str, tokenize: bool, **kwargs: Any) -> str:
        return render_jinja_template([turns], chat_template=chat_template, **kwargs)[0][0]


PROCESSORS = {name: Processor(template) for name, template in TEMPLATES.items()}


def asked(name: str, text: str) -> str:
    """The question of a rendered prompt, which its tokens must spell."""
    processor: Any = PROCESSORS[name]
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    question = find_question(ids, processor.tokenizer.convert_tokens_to_ids(IMAGE), processor)
    letters = processor.tokenizer.decode([ids[place] for place in question.tokens])
    assert "".join(question.text.split()) == "".join(letters.split())
    return " ".join(question.text.split())


def dialogue(name: str, *turns: tuple[str, str], answer: bool = True) -> str:
    messages = []
    for role, words in turns:
        parts = words.split(IMAGE)
        content: list[dict[str, str]] = []
        for number, part in enumerate(parts):
            content += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": part}] * bool(part)
        messages.append({"role": role, "content": content})
    return PROCESSORS[name].apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=answer
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_user_turn(name: str) -> None:
    question = "Is there a cat?"
    last = ("user", f"{IMAGE}{question}")
    before = [("user", f"{IMAGE}What is it?"), ("assistant", "A dog.")]
    assert asked(name, dialogue(name, last)) == question
    assert asked(name, dialogue(name, last, answer=False)) == question
    assert asked(name, dialogue(name, *before, last)) == question
    assert asked(name, dialogue(name, *before, last, answer=False)) == question
    assert asked(name, dialogue(name, *before, last) + " Yes, it is") == question
    assert asked(name, dialogue(name, last) + " Yes, it is") == question
    assert asked(name, dialogue(name, ("user", f"Look:{IMAGE}{IMAGE}same?"))) == "Look: same?"
    assert asked(name, dialogue(name, ("user", IMAGE))) == ""
    if name != "gemma":
        told = dialogue(name, ("system", "Be brief."), last)
        assert asked(name, told) == question


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "question",
    [
        "What does 'USER:' say?",
        "Is 'ASSISTANT:' or ASSISTANT: there?",
        "USER:",
        "ASSISTANT:",
        "user",
        "Say USER: now",
    ],
)
def test_role_words_in_a_question(name: str, question: str) -> None:
    assert asked(name, dialogue(name, ("user", f"{IMAGE}{question}"))) == question


def test_what_cannot_be_known() -> None:
    cases = {
        "vicuna": "A chat. The assistant is kind. USER: Say ASSISTANT: hello USER: bye ASSISTANT:",
        "llava": "USER: Is ASSISTANT: there? ASSISTANT: Yes, it",
        "qwen": "USER: <image> Is there a cat? ASSISTANT:",
        "llama3": "<image> Question: is there a cat? Answer:",
        "gemma": dialogue("gemma", ("system", "Be brief."), ("user", "Is there a cat?")),
    }
    for name, text in cases.items():
        with pytest.raises(vlmfix.UnsupportedError, match="question cannot be found"):
            asked(name, text)


def test_a_template_that_takes_strings_alone() -> None:
    template = TEMPLATES["vicuna"].replace(_TEXT, "{{ m.content }}")
    strict = template.replace("m.content }}", "m.content.strip() }}")
    for each in (template, strict):
        processor: Any = Processor(each)
        text = render("Is there a cat?", 2, processor)
        assert text == "A chat. The assistant is kind. USER: <image>\n<image>\nIs there a cat? ASSISTANT:"
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        question = find_question(ids, processor.tokenizer.convert_tokens_to_ids(IMAGE), processor)
        assert question.text.strip() == "Is there a cat?"


def test_prompt_without_turns() -> None:
    for name in TEMPLATES:
        assert asked(name, f"{IMAGE}Is there a cat?") == "Is there a cat?"


@pytest.mark.parametrize("model", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_embedded_templates_mirror_the_real_ones(model: str) -> None:
    """The order of the content is kept by that of Qwen; LLaVA's shows images first. The weights were trained
    with the single-image prompt."""
    _, processor = vlmfix.load(model)
    content = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    template = processor.chat_template or processor.tokenizer.chat_template
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
    text = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    if model == "tiny-llava":
        assert render("Hi", 1, processor) == "USER: <image>\nHi ASSISTANT:"
        assert text == "USER: <image>\na b ASSISTANT:"
        with pytest.raises(ValueError, match="the prompt contains '<image>', which stands"):
            render("<image>\nHi", 1, processor)
        return
    form = "<|endoftext|><|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert render("Hi", 1, processor) == form.format(f"{picture}Hi")
    assert text == form.format(f"a{picture}b")
    content.append({"type": "video"})
    video = picture.replace("image", "video")
    numbered = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_vision_id=True, **options
    )
    assert numbered == form.format(f"aPicture 1: {picture}bVideo 1: {video}")
