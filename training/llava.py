"""tiny-llava: its configuration, prompt form and processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from training.families import HEADS, HIDDEN, KEY_HEADS, LAYERS, MLP, Family, normalized
from training.tokenizer import LLAVA_TEMPLATE, build_tokenizer
from vlmfix.evaluation.datasets.synthetic.scenes import SIZE


class TinyLlava(Family):
    """LLaVA-1.5: CLIP tower, two-layer projector, Llama decoder with grouped-query attention."""

    name = "tiny-llava"
    cell = 14
    feature_size = 160
    sizes = (SIZE,)
    prefix = ("<s>USER: ", "")
    turn = ("\n", " ASSISTANT:", " ", "USER: ")

    def __init__(self) -> None:
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        self.tokenizer = build_tokenizer(special, {"image_token": "<image>"}, begin="<s>")
        token_of: Any = self.tokenizer.convert_tokens_to_ids  # an int for a string; typed for lists too
        ids = {k: token_of(v) for k, v in special.items()}
        token_ids = {f"{name}_id": token for name, token in ids.items()}
        vision = CLIPVisionConfig(
            hidden_size=self.feature_size,
            intermediate_size=480,
            num_hidden_layers=5,
            num_attention_heads=5,
            image_size=SIZE[0],
            patch_size=self.cell,
            projection_dim=self.feature_size,
        )
        text = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=MLP,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_HEADS,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            tie_word_embeddings=False,
            **token_ids,
        )
        tokens = (SIZE[0] // self.cell) ** 2
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=token_of("<image>"),
            image_seq_length=tokens,
            vision_feature_layer=-1,
            **token_ids,
        )
        self.model = LlavaForConditionalGeneration(config)
        self.language_model = self.model.model.language_model
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": SIZE[0]}, crop_size={"height": SIZE[1], "width": SIZE[0]}
        )

    def features(self, pixels: Tensor) -> Tensor:
        tower = self.model.model.vision_tower
        states = tower(normalized(pixels, self.image_processor), output_hidden_states=True)
        patches: Tensor = states.hidden_states[-1][:, 1:]
        return patches

    def project(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.model.model.multi_modal_projector(features)
        return tokens

    def image_positions(self, rows: int, columns: int, start: int) -> tuple[Tensor, int]:
        return torch.arange(start, start + rows * columns).expand(3, -1), start + rows * columns

    def vision_modules(self) -> list[nn.Module]:
        tower = self.model.model.vision_tower
        return [tower.embeddings, tower.pre_layrnorm, tower.encoder]

    def vision_matrices(self) -> list[nn.Module]:
        return [self.model.model.vision_tower.encoder]

    def projector(self) -> nn.Module:
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    def rotary(self, hidden_states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        embedding: tuple[Tensor, Tensor] = self.language_model.rotary_emb(hidden_states, positions[0])
        return embedding

    def save_processor(self, folder: Path) -> None:
        processor = LlavaProcessor(
            image_processor=self.image_processor,
            tokenizer=self.tokenizer,
            patch_size=self.cell,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=LLAVA_TEMPLATE,
        )
        processor.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self.tokenizer.chat_template = LLAVA_TEMPLATE
        self.tokenizer.save_pretrained(folder)
