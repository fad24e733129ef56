"""What each type needs beyond the rules by name: corrections of its configuration, and its processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.zoo.processors import AREA, CROPPED, SQUARE, Recipe
from tests.support.zoo.shrink import IMAGE_SIZE, PATCH


@dataclass(frozen=True)
class Type:
    """A model type, or a variant of one.

    Attributes:
        config: corrections of the tiny configuration, nested as it is; `...` drops a key.
        recipe: its processor, by which prompts are made too.
        base: the model type of a variant.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    base: str = ""


PINPOINTS = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE]]
CLIP_OPTIONS = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_LLAVA = Recipe("LlavaProcessor", "LlavaImageProcessorPil", options=CLIP_OPTIONS, sizes=CROPPED)
_QWEN_IDS = {
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_QWEN = Recipe(
    "Qwen2VLProcessor",
    "Qwen2VLImageProcessorPil",
    image="<|image_pad|>",
    item="<|vision_start|><|image_pad|><|vision_end|>",
    ids=_QWEN_IDS,
    sizes=AREA,
)
_GLM = Recipe(
    "Glm4vProcessor",
    "Glm4vImageProcessorPil",
    image="<|image|>",
    item="<|begin_of_image|><|image|><|end_of_image|>",
    ids={
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
        "video_token_id": "<|video|>",
    },
    sizes=AREA,
)
_GLM46 = replace(_GLM, processor="Glm46VProcessor", pictures="Glm46VImageProcessorPil")
_PIXTRAL = Recipe(
    "pixtral.processing_pixtral:PixtralProcessor",
    "PixtralImageProcessorPil",
    image="[IMG]",
    others=("[IMG_BREAK]", "[IMG_END]"),
    options={"patch_size": PATCH, "spatial_merge_size": 2},
    sizes={"size": {"longest_edge": 84}, "patch_size": {"height": PATCH, "width": PATCH}},
)
_CELLS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3))
_TILES = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": IMAGE_SIZE}}
_IDEFICS3 = Recipe(
    "Idefics3Processor",
    "Idefics3ImageProcessorPil",
    others=("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "\n", "\n\n", *_CELLS),
    options={"image_seq_len": 4},
    sizes=_TILES,
)
_BLIP = Recipe("Blip2Processor", "BlipImageProcessorPil", options={"num_query_tokens": 4}, sizes={"size": SQUARE})
_INTERNVL = Recipe(
    "InternVLProcessor",
    "GotOcr2ImageProcessorPil",
    image="<IMG_CONTEXT>",
    names={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    options={"image_seq_length": 4},
    sizes={"size": SQUARE, "crop_to_patches": True, "max_patches": 2},
)


def _llava(model_type: str, **text: Any) -> Type:
    return Type({"text_config": {"model_type": model_type, **text}}, _LLAVA, base="llava")


TYPES: dict[str, Type] = {
    "llava": Type({}, _LLAVA),
    "llava+mistral": _llava("mistral", sliding_window=None),
    "llava+window": _llava("mistral", sliding_window=12),
    "llava+qwen2": _llava("qwen2"),
    "llava+qwen3": _llava("qwen3"),
    "llava+gemma": _llava("gemma"),
    "llava+gemma2": _llava("gemma2"),
    "llava+gpt_oss": _llava("gpt_oss"),
    "llava+phi3": _llava("phi3"),
    "llava+phi": _llava("phi"),
    "llava+olmo2": _llava("olmo2"),
    "llava+granite": _llava("granite"),
    "llava+stablelm": _llava("stablelm"),
    "llava+siglip": Type(
        {"vision_config": {"model_type": "siglip_vision_model"}, "vision_feature_select_strategy": "full"},
        replace(_LLAVA, options={"patch_size": PATCH, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}),
        base="llava",
    ),
    "llava+pixtral": Type(
        {"vision_config": {"model_type": "pixtral"}, "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        replace(_PIXTRAL, options={"patch_size": PATCH}),
        base="llava",
    ),
    "llava_next": Type(
        {"image_grid_pinpoints": PINPOINTS},
        replace(
            _LLAVA,
            processor="LlavaNextProcessor",
            pictures="LlavaNextImageProcessorPil",
            sizes={**CROPPED, "image_grid_pinpoints": PINPOINTS},
        ),
    ),
    "llava_next_video": Type(
        {"image_grid_pinpoints": PINPOINTS},
        replace(
            _LLAVA,
            processor="LlavaNextVideoProcessor",
            pictures="LlavaNextImageProcessorPil",
            ids={"video_token_index": "<video>"},
            sizes={**CROPPED, "image_grid_pinpoints": PINPOINTS},
        ),
    ),
    "llava_onevision": Type(
        {"image_grid_pinpoints": PINPOINTS},
        Recipe(
            "LlavaOnevisionProcessor",
            "LlavaOnevisionImageProcessorPil",
            ids={"video_token_index": "<video>"},
            options={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
            sizes={"size": SQUARE, "image_grid_pinpoints": PINPOINTS},
        ),
    ),
    "vipllava": Type({"vision_feature_layers": [-1, -2]}, replace(_LLAVA, pictures="CLIPImageProcessorPil")),
    "video_llava": Type(
        {},
        replace(
            _LLAVA,
            processor="VideoLlavaProcessor",
            pictures="VideoLlavaImageProcessor",
            ids={"video_token_index": "<video>"},
        ),
    ),
    "qwen2_vl": Type({}, _QWEN),
    "qwen2_5_vl": Type({}, replace(_QWEN, processor="Qwen2_5_VLProcessor")),
    "qwen3_vl": Type({}, replace(_QWEN, processor="Qwen3VLProcessor")),
    "qwen3_vl_moe": Type({}, replace(_QWEN, processor="Qwen3VLProcessor")),
    "qwen3_5": Type({}, replace(_QWEN, processor="Qwen3VLProcessor")),
    "qwen3_5_moe": Type({}, replace(_QWEN, processor="Qwen3VLProcessor")),
    "glm4v": Type({}, _GLM),
    "glm4v_moe": Type({}, _GLM),
    "glm46v": Type({}, _GLM46),
    "glm_ocr": Type({}, _GLM46),
    "mistral3": Type({}, _PIXTRAL),
    "lighton_ocr": Type(
        {},
        Recipe(
            "LightOnOcrProcessor",
            "PixtralImageProcessorPil",
            image="[IMG]",
            names={"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
            options=_PIXTRAL.options,
            sizes=_PIXTRAL.sizes,
        ),
    ),
    "idefics2": Type(
        {},
        Recipe(
            "Idefics2Processor",
            "Idefics2ImageProcessorPil",
            others=("<fake_token_around_image>", "<end_of_utterance>"),
            options={"image_seq_len": 4},
            sizes={"size": {"shortest_edge": 42, "longest_edge": IMAGE_SIZE}},
        ),
    ),
    "idefics3": Type({}, _IDEFICS3),
    "smolvlm": Type(
        {}, replace(_IDEFICS3, processor="SmolVLMProcessor", pictures="SmolVLMImageProcessorPil")
    ),
    "gemma3": Type(
        {"mm_tokens_per_image": 4},
        Recipe(
            "Gemma3Processor",
            "Gemma3ImageProcessorPil",
            image="<image_soft_token>",
            item="<start_of_image>",
            names={
                "image_token": "<image_soft_token>",
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
            },
            ids={"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>"},
            others=("\n\n",),
            options={"image_seq_length": 4},
            sizes={"size": SQUARE},
        ),
    ),
    "paligemma": Type({}, Recipe("PaliGemmaProcessor", "SiglipImageProcessorPil", names={"image_token": "<image>"})),
    "internvl": Type({}, _INTERNVL),
    "ovis2": Type(
        {},
        Recipe(
            "Ovis2Processor",
            "Ovis2ImageProcessorPil",
            others=("<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
            options={"image_seq_length": 4},
            sizes={"size": SQUARE, "crop_to_patches": True, "max_patches": 2},
        ),
    ),
    "aria": Type(
        {},
        Recipe(
            "AriaProcessor",
            "AriaImageProcessorPil",
            names={"image_token": "<image>"},
        ),
    ),
    "deepseek_vl": Type(
        {},
        Recipe(
            "DeepseekVLProcessor",
            "DeepseekVLImageProcessorPil",
            names={"image_token": "<image>"},
            options={"num_image_tokens": 16},
            sizes={"size": SQUARE},
        ),
    ),
    "deepseek_vl_hybrid": Type(
        {},
        Recipe(
            "DeepseekVLHybridProcessor",
            "DeepseekVLHybridImageProcessorPil",
            names={"image_token": "<image>"},
            options={"num_image_tokens": 16},
            sizes={"size": SQUARE, "high_res_size": SQUARE},
        ),
    ),
    "janus": Type(
        {},
        Recipe(
            "JanusProcessor",
            "JanusImageProcessorPil",
            names={"image_token": "<image>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
            options={"num_image_tokens": 16},
            sizes={"size": SQUARE},
        ),
    ),
    "paddleocr_vl": Type(
        {},
        Recipe(
            "PaddleOCRVLProcessor",
            "PaddleOCRVLImageProcessorPil",
            image="<|IMAGE_PLACEHOLDER|>",
            item="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
            names={"image_token": "<|IMAGE_PLACEHOLDER|>"},
            ids={"vision_start_token_id": "<|IMAGE_START|>", "vision_end_token_id": "<|IMAGE_END|>"},
            sizes=AREA,
        ),
    ),
    "video_llama_3": Type(
        {},
        Recipe(
            "VideoLlama3Processor",
            "VideoLlama3ImageProcessorPil",
            image="<|image_pad|>",
            ids={"video_token_id": "<|video_pad|>"},
            sizes={**AREA, "merge_size": 2},
        ),
    ),
    "got_ocr2": Type(
        {},
        Recipe(
            "GotOcr2Processor",
            "GotOcr2ImageProcessorPil",
            image="<imgpad>",
            others=("<img>", "</img>", "<|im_start|>", "<|im_end|>"),
            sizes={"size": SQUARE},
        ),
    ),
    "hyperclovax_vision_v2": Type({}, replace(_QWEN, processor="HyperCLOVAXVisionV2Processor")),
    "aya_vision": Type(
        {},
        Recipe(
            "AyaVisionProcessor",
            "GotOcr2ImageProcessorPil",
            image="<|IMG_PATCH|>",
            item="<image>",
            others=("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"),
            options={"patch_size": PATCH, "img_size": IMAGE_SIZE, "downsample_factor": 2},
            sizes={"size": SQUARE, "crop_to_patches": True, "max_patches": 2},
        ),
    ),
}
