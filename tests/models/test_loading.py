"""Loading: the embedded models, folders, hub ids without a network, processors without torchvision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
)

import vlmfix
from tests.support import zoo
from vlmfix.inference.chat import prepare
from vlmfix.models.embedded import EMBEDDED
from vlmfix.models.loading import load_processor, resolve


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


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video", "glm_ocr", "gemma3", "gemma4"])
def test_processors_that_are_saved_load_again(name: str, tmp_path: Path) -> None:
    """Those for images alone keep their options, whatever the order of the parts, and whichever type asks."""
    stock = zoo.processor(name)
    assert stock is not None
    stock.save_pretrained(tmp_path)
    zoo.build(name).save_pretrained(tmp_path)
    _, processor = vlmfix.load(tmp_path)
    recipe = zoo.TYPES[name].recipe
    text, picture = recipe.item or recipe.image, Image.new("RGB", (84, 56))
    before, after = (
        each(text=[text], images=[picture], return_tensors="pt")["input_ids"] for each in (stock, processor)
    )
    assert before.tolist() == after.tolist()


Change = Callable[[Path], object]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of tiny-llava to break."""
    return Path(shutil.copytree(resolve("tiny-llava"), tmp_path / "checkpoint"))


def weights(change: Callable[[dict[str, Tensor]], object]) -> Change:
    """A change of the weights of a folder."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def config(**values: Any) -> Change:
    """A change of the configuration of a folder."""

    def changed(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(content))

    return changed


def text(name: str, content: str) -> Change:
    """Other content of a file."""
    return lambda folder: (folder / name).write_text(content)


def gone(*names: str) -> Change:
    """Files that are missing."""
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def interrupted(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    tensors = load_file(folder / "model-00001-of-00002.safetensors")
    shards = {
        name: f"model-0000{1 + (number > 50)}-of-00002.safetensors" for number, name in enumerate(tensors)
    }
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DOWN = "language_model.model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (weights(lambda tensors: tensors.pop(DOWN)), "1 weight missing, which would be random: model.lang"),
        (
            weights(lambda tensors: tensors.update({DOWN: tensors[DOWN][:, 1:].clone()})),
            r"\(192, 447\)",
        ),
        (
            weights(lambda tensors: tensors.update(more=torch.ones(2))),
            r"1 weight not part .*: more",
        ),
        (weights(lambda tensors: tensors[DOWN][0].fill_(float("nan"))), "1 weight not finite in float32"),
        (weights(lambda tensors: tensors[DOWN][0, 0].fill_(float("inf"))), "1 weight not finite in float32"),
        (cut, r"model\.safetensors is cut off or damaged \(100000 bytes"),
        (text("model.safetensors", ""), r"model\.safetensors is cut off or damaged \(it is empty"),
        (gone("model.safetensors"), r"has no model\.safetensors"),
        (interrupted, r"model\.safetensors\.incomplete is a download that was interrupted"),
        (pickled, r"pytorch_model\.bin is pickled.* only safetensors are loaded: convert it"),
        (sharded, r"model-00002-of-00002\.safetensors is missing"),
        (gone("config.json"), r"has no config\.json"),
        (text("config.json", "{"), r"config\.json is no JSON"),
        (text("config.json", "[]"), r"config\.json is no JSON object"),
        (text("config.json", "{}"), r"config\.json has no model_type"),
        (
            config(model_type="whisper"),
            r"is no image-text-to-text .*'whisper', of models without",
        ),
        (config(model_type="nobody"), "'nobody', which this version does not know"),
        (text("tokenizer.json", "{"), r"the processor of .*tokenizer\.json is no JSON"),
        (text("generation_config.json", "{"), r"generation_config\.json is no JSON"),
        (gone("tokenizer.json", "tokenizer_config.json"), r"has no tokenizer\.json"),
        (text("chat_template.jinja", "{% for x in %}"), r"the chat template of .* is broken \(line 1: "),
        (config(image_token_id=1, image_token_index=1), "marks images by token 3, the model by token 1"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said_in_one_line(
    change: Change, message: str, checkpoint: Path
) -> None:
    change(checkpoint)
    with pytest.raises(ValueError, match=message) as caught:
        vlmfix.load(checkpoint, dtype="float32")
    assert "\n" not in str(caught.value)
    assert str(checkpoint) in str(caught.value)


def test_missing_weights_can_be_allowed(checkpoint: Path) -> None:
    weights(lambda tensors: tensors.pop(DOWN))(checkpoint)
    with pytest.warns(UserWarning, match="1 weight missing"):
        vlmfix.load(checkpoint, allow_missing=True)


def test_tied_weights_and_keys_that_the_class_ignores_are_no_fault(tmp_path: Path) -> None:
    model, processor = vlmfix.load()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ignored = torch.arange(4.0)  # a buffer of old checkpoints
    weights(lambda tensors: tensors.update({"vision_tower.embeddings.position_ids": ignored}))(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "vision_tower.embeddings.position_ids" in tensors
    assert not any("lm_head" in name for name in tensors)
    again, _ = vlmfix.load(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight


def test_bfloat16_weights_that_float16_cannot_hold_are_named_with_the_remedy(checkpoint: Path) -> None:
    weights(lambda tensors: tensors.update({DOWN: torch.full((192, 448), 1e30)}))(checkpoint)
    vlmfix.load(checkpoint, dtype="float32")
    with pytest.raises(ValueError, match=r"not finite in float16 .* load it in bfloat16 or float32"):
        vlmfix.load(checkpoint, dtype="float16")


def test_a_qwen_processor_saved_for_images_only_loads_again(tmp_path: Path) -> None:
    model, processor = vlmfix.load("tiny-qwen2.5-vl")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.new("RGB", (112, 112), "red")
    answers = [
        vlmfix.generate(*loaded, picture, "Describe the image.", max_new_tokens=8)
        for loaded in ((model, processor), vlmfix.load(tmp_path))
    ]
    assert answers[0] == answers[1]


def test_a_tokenizer_without_padding_token(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content.pop("pad_token", None)
    path.write_text(json.dumps(content))
    model, processor = vlmfix.load(checkpoint)
    prompts = ["Describe the image.", "Is there a fork in the image?"]
    picture = Image.new("RGB", (112, 112))
    assert len(vlmfix.generate(model, processor, picture, prompts, max_new_tokens=2)) == 2


@pytest.mark.parametrize("base", ["/nowhere/base", "nonsense"])
def test_an_adapter_whose_base_is_not_there(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(FileNotFoundError, match=rf"the base model '{base}' of the adapter .* is not there"):
        vlmfix.load(tmp_path)


def test_an_adapter_without_peft_or_without_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(ValueError, match="names no base model"):
        vlmfix.load(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny-llava"}')
    with pytest.raises(ImportError, match="is an adapter for 'tiny-llava', which needs PEFT: pip install"):
        vlmfix.load(tmp_path)
