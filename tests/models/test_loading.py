"""Loading: the embedded models, folders, hub ids without a network, processors without torchvision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
)

import vlmfix
from vlmfix.models.loading import EMBEDDED, load_processor, resolve
from vlmfix.prompts import prepare


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_load_from_the_package(name: str) -> None:
    model, processor = vlmfix.load(name)
    assert not model.training
    assert model.dtype == torch.float32
    assert sum(path.stat().st_size for path in Path(resolve(name)).iterdir()) < 13e6
    picture = Image.new("RGB", (112, 112), "grey")
    inputs = prepare(
        [[picture], [picture, picture], []], ["What is it?", "Are they alike?", "Hello"], processor
    )
    image_tokens = (inputs["input_ids"] == model.config.image_token_id).sum(dim=1)
    assert image_tokens[1] == 2 * image_tokens[0] > 0
    assert image_tokens[2] == 0
    assert inputs["attention_mask"][:, -1].all()
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 3


def test_qwen_takes_pictures_of_any_size() -> None:
    model, processor = vlmfix.load("tiny-qwen2.5-vl")
    sizes = [(112, 112), (144, 112), (96, 128), (37, 200)]
    answers = vlmfix.generate(
        model, processor, [Image.new("RGB", size) for size in sizes], "Hi", max_new_tokens=2
    )
    assert len(answers) == len(sizes)


@pytest.mark.parametrize("name", EMBEDDED)
def test_stock_auto_class_loads_the_folder(name: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(resolve(name))
    assert type(model).__module__.startswith("transformers.models.")


def test_a_folder_and_a_dtype() -> None:
    model, _ = vlmfix.load(Path(resolve("tiny-llava")), dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.get_decoder().config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nonsense", Path("nowhere")], ids=str)
def test_no_such_folder(name: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither an embedded model"):
        vlmfix.load(name)


def test_hub_id_without_a_network_says_what_to_do() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        vlmfix.load("llava-hf/llava-1.5-7b-hf")
    message = str(caught.value)
    assert "\n" not in message
    assert "hf download llava-hf/llava-1.5-7b-hf" in message
    assert "'tiny-llava' needs no download" in message


def test_folders_without_a_usable_model(tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)):
        vlmfix.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is no image-text-to-text model") as caught:
        vlmfix.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="unknown dtype 'float31'"):
        vlmfix.load("tiny-llava", dtype="float31")


def test_image_only_processor_keeps_the_other_arguments(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny-llava"))
    tokenizer.save_pretrained(tmp_path)
    LlavaOnevisionImageProcessorPil().save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(
        '{"num_image_tokens": 9, "processor_class": "LlavaOnevisionProcessor"}'
    )
    (tmp_path / "chat_template.jinja").write_text("a template")
    (tmp_path / "config.json").write_text('{"model_type": "llava_onevision"}')
    processor = load_processor(str(tmp_path))
    assert isinstance(processor, LlavaOnevisionProcessor)
    assert type(processor).__name__ == "LlavaOnevisionProcessor"
    assert processor.num_image_tokens == 9
    assert processor.chat_template == "a template"
