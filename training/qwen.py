"""tiny-qwen2.5-vl: its configuration, prompt form and processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from training.families import HEADS, HIDDEN, KEY_HEADS, LAYERS, MLP, Family, normalized
from training.tokenizer import QWEN_TEMPLATE, build_tokenizer
from vlmfix.evaluation.datasets.synthetic.scenes import VARIED_SIZES


class TinyQwen(Family):
    """Qwen2.5-VL: vision tower with window attention, merger, decoder with M-RoPE."""

    name = "tiny-qwen2.5-vl"
    cell = 16
    vision_size = 128
    feature_size = 512
    sizes = VARIED_SIZES
    prefix = ("<|endoftext|><|im_start|>user\n<|vision_start|>", "<|vision_end|>")
    turn = ("", "<|im_end|>\n<|im_start|>assistant\n", "", "\n<|im_start|>user\n")

    def __init__(self) -> None:
        special = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
        extra = {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
            "turn_token": "<|im_start|>",
        }
        self.tokenizer = build_tokenizer(special, extra)
        token_of: Any = self.tokenizer.convert_tokens_to_ids  # an int for a string; typed for lists too
        ids = {k: token_of(v) for k, v in (special | extra).items()}
        token_ids = {f"{name}_id": ids[name] for name in special}
        text = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_HEADS,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": False,
            **token_ids,
        }
        vision = {
            "depth": 4,
            "hidden_size": self.vision_size,
            "intermediate_size": 288,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 64,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": HIDDEN,
        }
        config = Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=ids["image_token"],
            video_token_id=ids["video_token"],
            vision_start_token_id=ids["vision_start_token"],
            vision_end_token_id=ids["vision_end_token"],
            tie_word_embeddings=False,
            **token_ids,
        )
        self.model = Qwen2_5_VLForConditionalGeneration(config)
        self.language_model = self.model.model.language_model
        self.visual = self.model.model.visual
        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=8,
            temporal_patch_size=2,
            merge_size=2,
            size={"shortest_edge": 96 * 96, "longest_edge": 144 * 112},
        )

    def features(self, pixels: Tensor) -> Tensor:
        """The stock tower, but all windows of a batch in one masked attention instead of a loop."""
        visual = self.visual
        batch, height, width, _ = pixels.shape
        rows, columns = height // 8, width // 8
        images = normalized(pixels, self.image_processor)
        patches = images.reshape(batch, 3, rows // 2, 2, 8, columns // 2, 2, 8)
        patches = (
            patches.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
        )
        x = visual.patch_embed(patches.reshape(batch * rows * columns, -1)).view(batch, rows * columns, -1)
        grid = torch.tensor([[1, rows, columns]])
        window_index, bounds = get_vision_window_index(
            grid, spatial_merge_size=2, window_size=visual.window_size, patch_size=8
        )
        order = (window_index[:, None] * 4 + torch.arange(4)).flatten()
        x = x[:, order]
        cos, sin = (part[order] for part in visual.rotary_pos_emb(x, get_vision_position_ids(grid, 2)))
        window = torch.searchsorted(bounds.to(torch.int64), torch.arange(rows * columns), right=True)
        same_window = window[:, None] == window[None, :]
        for number, block in enumerate(visual.blocks):
            mask = None if number in visual.fullatt_block_indexes else same_window
            x = x + _vision_attention(block.attn, block.norm1(x), cos, sin, mask)
            x = x + block.mlp(block.norm2(x))
        x = visual.merger.ln_q(x).view(batch, -1, self.feature_size)
        ordered: Tensor = x[:, torch.argsort(window_index)]
        return ordered

    def project(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.visual.merger.mlp(features)
        return tokens

    def image_positions(self, rows: int, columns: int, start: int) -> tuple[Tensor, int]:
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.stack([torch.zeros(rows, columns, dtype=torch.long), row, column]).flatten(1)
        return places + start, start + max(rows, columns)

    def vision_modules(self) -> list[nn.Module]:
        return [self.visual.patch_embed, self.visual.blocks, self.visual.merger.ln_q]

    def vision_matrices(self) -> list[nn.Module]:
        return [self.visual.blocks]

    def projector(self) -> nn.Module:
        mlp: nn.Module = self.visual.merger.mlp
        return mlp

    def rotary(self, hidden_states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        embedding: tuple[Tensor, Tensor] = self.language_model.rotary_emb(hidden_states, positions)
        return embedding

    def save_processor(self, folder: Path) -> None:
        settings = self.image_processor.to_dict() | {"processor_class": "Qwen2_5_VLProcessor"}
        video = settings | {"video_processor_type": "Qwen2VLVideoProcessor"}
        del video["image_processor_type"]
        for name, content in (("preprocessor", settings), ("video_preprocessor", video)):
            (folder / f"{name}_config.json").write_text(
                json.dumps(content, indent=2) + "\n", encoding="utf-8"
            )
        self.tokenizer.chat_template = QWEN_TEMPLATE
        self.tokenizer.save_pretrained(folder)


def _vision_attention(attention: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    batch, tokens, size = x.shape
    heads = attention.num_heads
    query, key, value = attention.qkv(x).view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key = (part * cos + _rotate_half(part) * sin for part in (query, key))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    output: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, tokens, size))
    return output


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
