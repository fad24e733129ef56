"""What each type needs beyond the rules by name: corrections of its configuration, and its processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.support.zoo import pictures
from tests.support.zoo.processors import AREA, CROPPED, SQUARE, Recipe
from tests.support.zoo.recipes import (
    BLIP,
    CELLS,
    CLIP_OPTIONS,
    COHERE2,
    GEMMA3,
    GEMMA4,
    GEMMA4_VISION,
    GLM,
    GLM46,
    HALF_MROPE,
    IDEFICS3,
    INKLING2,
    INTERNVL,
    LIGHTON,
    LLAVA,
    MINICPM,
    MINICPM7,
    MROPE,
    MUSE,
    OMNI,
    OMNI_IDS,
    PALIGEMMA,
    PINPOINTS,
    PIXTRAL,
    QWEN,
)
from tests.support.zoo.shrink import IMAGE_SIZE, IMAGE_TOKEN, PATCH


@dataclass(frozen=True)
class Type:
    """A model type, or a variant of one.

    Attributes:
        config: corrections of the tiny configuration, nested as it is; `...` drops a key.
        recipe: its processor, by which prompts are made too.
        base: the model type of a variant.
        one_image: whether a prompt has at most one picture.
    """

    config: Mapping[str, Any]
    recipe: Recipe
    base: str = ""
    one_image: bool = False


def _letters(code: int) -> str:
    return "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code))


def _llava(model_type: str, **text: Any) -> Type:
    return Type({"text_config": {"model_type": model_type, **text}}, LLAVA, base="llava")


TYPES: dict[str, Type] = {
    "llava": Type({}, LLAVA),
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
        replace(
            LLAVA,
            options={
                "patch_size": PATCH,
                "vision_feature_select_strategy": "full",
                "num_additional_image_tokens": 0,
            },
        ),
        base="llava",
    ),
    "llava+pixtral": Type(
        {
            "vision_config": {"model_type": "pixtral"},
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
        },
        replace(PIXTRAL, draw=pictures.rows(1)),
        base="llava",
    ),
    "llava_next": Type(
        {"image_grid_pinpoints": PINPOINTS},
        replace(
            LLAVA,
            processor="LlavaNextProcessor",
            pictures="LlavaNextImageProcessorPil",
            sizes={**CROPPED, "image_grid_pinpoints": PINPOINTS},
        ),
    ),
    "llava_next_video": Type(
        {"image_grid_pinpoints": PINPOINTS},
        replace(
            LLAVA,
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
    "vipllava": Type({"vision_feature_layers": [-1, -2]}, replace(LLAVA, pictures="CLIPImageProcessorPil")),
    "video_llava": Type(
        {},
        replace(
            LLAVA,
            processor="VideoLlavaProcessor",
            pictures="VideoLlavaImageProcessor",
            ids={"video_token_index": "<video>"},
        ),
    ),
    "qwen2_vl": Type(MROPE, QWEN),
    "qwen2_5_vl": Type(MROPE, replace(QWEN, processor="Qwen2_5_VLProcessor")),
    "qwen3_vl": Type(MROPE, replace(QWEN, processor="Qwen3VLProcessor")),
    "qwen3_vl_moe": Type(MROPE, replace(QWEN, processor="Qwen3VLProcessor")),
    "qwen3_5": Type(HALF_MROPE, replace(QWEN, processor="Qwen3VLProcessor")),
    "qwen3_5_moe": Type(HALF_MROPE, replace(QWEN, processor="Qwen3VLProcessor")),
    "glm4v": Type(MROPE, GLM),
    "glm4v_moe": Type(HALF_MROPE, GLM),
    "glm46v": Type(MROPE, GLM46),
    "glm_ocr": Type(MROPE, GLM46),
    "mistral3": Type({}, PIXTRAL),
    "lighton_ocr": Type({}, LIGHTON),
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
    "idefics3": Type({}, IDEFICS3),
    "smolvlm": Type({}, IDEFICS3),
    "gemma3": Type({"mm_tokens_per_image": 4}, GEMMA3),
    "gemma3+window": Type(
        {"mm_tokens_per_image": 4, "text_config": {"sliding_window": 12}}, GEMMA3, base="gemma3"
    ),
    "gemma3n": Type(
        {
            # Tokens from one number on are read from a table of pictures, from another from one of sounds.
            "text_config": {
                "layer_types": [
                    "sliding_attention",
                    "full_attention",
                    *["sliding_attention"] * 2,
                    "full_attention",
                ],
                "intermediate_size": [48] * 5,
                "num_kv_shared_layers": 2,
                "vocab_size_per_layer_input": IMAGE_TOKEN,
            },
            "vision_config": {"vocab_offset": IMAGE_TOKEN, "vocab_size": 10},
            "audio_config": {"vocab_offset": 120, "vocab_size": 60, "conf_num_hidden_layers": 1},
            "vision_soft_tokens_per_image": 16,
            "eoi_token_id": 111,
            "audio_token_id": 120,
            "eoa_token_id": 121,
        },
        Recipe(
            "Gemma3nProcessor",
            "SiglipImageProcessorPil",
            image="<image_soft_token>",
            extractor="Gemma3nAudioFeatureExtractor",
            names={
                "image_token": "<image_soft_token>",
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "audio_token": "<audio_soft_token>",
                "boa_token": "<start_of_audio>",
                "eoa_token": "<end_of_audio>",
            },
            ids={
                "boi_token_id": "<start_of_image>",
                "eoi_token_id": "<end_of_image>",
                "audio_token_id": "<audio_soft_token>",
                "boa_token_id": "<start_of_audio>",
                "eoa_token_id": "<end_of_audio>",
            },
            others=("\n\n",),
            options={"image_seq_length": 16},
            sizes={"size": SQUARE},
        ),
    ),
    "fast_vlm": Type(
        {},
        replace(
            LLAVA,
            pictures="CLIPImageProcessorPil",
            options={
                **CLIP_OPTIONS,
                "vision_feature_select_strategy": "full",
                "num_additional_image_tokens": 0,
            },
        ),
    ),
    "perception_lm": Type(
        {"vision_config": {"model_args": {"embed_dim": 32}}},
        Recipe(image="<|image|>", draw=pictures.one_tile),
    ),
    "paligemma": Type({}, PALIGEMMA),
    "paligemma+gemma2": Type({"text_config": {"model_type": "gemma2"}}, PALIGEMMA, base="paligemma"),
    "paligemma+window": Type(
        {"text_config": {"model_type": "gemma2", "sliding_window": 12}}, PALIGEMMA, base="paligemma"
    ),
    "internvl": Type({}, INTERNVL),
    "ovis2": Type(
        {},
        Recipe(
            "Ovis2Processor",
            "Ovis2ImageProcessorPil",
            image="<IMG_ATOM>",
            item="<image>",
            ids={
                "visual_indicator_token_ids": (
                    "<IMG_START>",
                    "<IMG_GRID>",
                    "<IMG_COL>",
                    "<IMG_ROW>",
                    "<IMG_END>",
                )
            },
            others=("<image>",),
            options={"image_seq_length": 16},
            sizes={"size": SQUARE, "crop_to_patches": True, "max_patches": 2},
        ),
    ),
    # Its image processor makes nothing smaller than 490 pixels.
    "aria": Type(
        {
            "projector_patch_to_query_dict": {49: 4, 196: 8},
            "vision_config": {"image_size": 980, "patch_size": 70},
        },
        Recipe(
            "AriaProcessor",
            "AriaImageProcessorPil",
            names={"image_token": "<image>"},
            options={"size_conversion": {490: 4, 980: 8}},
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
        {"vq_config": {"channel_multiplier": [1, 1]}},
        Recipe(
            "JanusProcessor",
            "JanusImageProcessorPil",
            names={"image_token": "<image>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
            options={"num_image_tokens": 16},
            sizes={"size": SQUARE},
        ),
    ),
    "paddleocr_vl": Type(
        MROPE,
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
            item="<img><imgpad></img>",
            others=("<img>", "</img>", "<|im_start|>", "<|im_end|>"),
            call={"num_image_tokens": 1},
            sizes={"size": SQUARE},
        ),
    ),
    "hyperclovax_vision_v2": Type(
        {},
        replace(
            QWEN,
            processor="HyperCLOVAXVisionV2Processor",
            ids={"video_token_id": "<|video_pad|>"},
            others=("<|vision_start|>", "<|vision_end|>"),
        ),
    ),
    "aya_vision": Type(
        {},
        Recipe(
            "AyaVisionProcessor",
            "GotOcr2ImageProcessorPil",
            image="<|IMG_PATCH|>",
            item="<image>",
            others=(
                "<image>",
                "<|START_OF_IMG|>",
                "<|END_OF_IMG|>",
                "<|IMG_LINE_BREAK|>",
                "TILE_1",
                "TILE_2",
                "TILE_GLOBAL",
            ),
            options={"patch_size": PATCH, "img_size": IMAGE_SIZE, "downsample_factor": 2},
            sizes={"size": SQUARE, "crop_to_patches": True, "max_patches": 2},
        ),
    ),
    "gemma4": Type(
        {"vision_config": GEMMA4_VISION},
        replace(
            GEMMA4,
            ids={
                **GEMMA4.ids,
                "video_token_id": "<|video|>",
                "audio_token_id": "<|audio|>",
                "boa_token_id": "<|audio>",
                "eoa_token_index": "<audio|>",
            },
        ),
    ),
    "qianfan_ocr": Type(
        {},
        replace(
            INTERNVL,
            processor="QianfanOCRProcessor",
            item="<image>",
            others=("<image>",),
            names={key: token for key, token in INTERNVL.names.items() if key != "video_token"},
        ),
    ),
    "blip-2": Type({}, BLIP, one_image=True),
    "instructblip": Type({}, replace(BLIP, processor="InstructBlipProcessor"), one_image=True),
    "chameleon": Type(
        {
            "vocabulary_map": {
                "<image>": IMAGE_TOKEN,
                **{f"IMGIMG{_letters(code)}Z": 130 + code for code in range(16)},
            },
            "vq_config": {"channel_multiplier": [1, 1, 1, 1], "resolution": 32},
        },
        Recipe(
            "ChameleonProcessor",
            "ChameleonImageProcessorPil",
            others=("<racm3:break>", "<eoss>"),
            options={"image_seq_length": 16},
            sizes={"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        ),
    ),
    "emu3": Type(
        {
            "vocabulary_map": {
                "<image>": IMAGE_TOKEN,
                "<|extra_200|>": 129,
                **{f"<|visual token {code:06d}|>": 130 + code for code in range(16)},
            },
            "vq_config": {"channel_multiplier": [1, 1, 1, 1], "attn_resolutions": []},
        },
        Recipe(
            "Emu3Processor",
            "Emu3ImageProcessor",
            names={
                "image_token": "<image>",
                "boi_token": "<|image start|>",
                "eoi_token": "<|image end|>",
                "image_wrapper_token": "<|image token|>",
                "eof_token": "<|extra_201|>",
            },
            others=("4*4", "4*6", "6*3"),
            begins=False,
            sizes={"min_pixels": 32 * 32, "max_pixels": 32 * 48},
        ),
    ),
    "mllama": Type(
        {"vision_config": {"vision_output_dim": 64}},
        Recipe(
            "MllamaProcessor",
            "MllamaImageProcessorPil",
            image="<|image|>",
            others=("<|python_tag|>",),
            begins=False,
            sizes={"size": SQUARE, "max_image_tiles": 4},
        ),
    ),
    "fuyu": Type({}, Recipe(image="|SPEAKER|", others=("|NEWLINE|",), draw=pictures.fuyu), one_image=True),
    "cohere_compass": Type(
        {"text_config": {"rope_parameters": {"full_attention": MROPE["text_config"]["rope_parameters"]}}},
        replace(
            QWEN,
            processor="CohereCompassProcessor",
            pictures="CohereCompassImageProcessorPil",
            image="<|IMAGE_PAD|>",
            item="<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
            ids={
                "video_token_id": "<|VIDEO_PAD|>",
                "vision_start_token_id": "<|VISION_START|>",
                "vision_end_token_id": "<|VISION_END|>",
            },
        ),
    ),
    "cosmos3_edge": Type(
        {},
        replace(
            QWEN,
            processor="Cosmos3EdgeProcessor",
            call={"return_mm_token_type_ids": True},
            pictures="Cosmos3EdgeImageProcessorPil",
        ),
    ),
    "cosmos3_omni": Type({}, replace(QWEN, processor="Qwen3VLProcessor")),
    "exaone4_5": Type(
        {},
        replace(
            QWEN,
            processor="Exaone4_5_Processor",
            ids={"video_token_id": "<|video_pad|>"},
            others=("<|vision_start|>", "<|vision_end|>"),
        ),
    ),
    "lfm3_vl": Type({}, replace(QWEN, processor="Lfm3VlProcessor")),
    "hy_v4_vl": Type(
        {"text_config": {"qk_rope_head_dim": 8, "qk_head_dim": 16}},
        replace(
            QWEN,
            processor="HYV4VLProcessor",
            ids={"video_token_id": "<|video_pad|>"},
            others=("<|vision_start|>", "<|vision_end|>"),
            pictures="HYV4VLImageProcessorPil",
        ),
    ),
    "qwen4_exp": Type(
        {
            "text_config": {
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 8,
                "indexer_budget": 16,
                "indexer_compress_ratio": 4,
            }
        },
        replace(QWEN, processor="Qwen3VLProcessor"),
    ),
    "qwen2_5_omni_thinker": Type(
        {**MROPE, **OMNI_IDS}, replace(OMNI, ids={"video_token_index": "<|VIDEO|>", **OMNI.ids})
    ),
    "qwen3_omni_moe_thinker": Type(
        {**MROPE, **OMNI_IDS},
        replace(OMNI, processor="Qwen3OmniMoeProcessor", ids={"video_token_id": "<|VIDEO|>", **OMNI.ids}),
    ),
    "glm5_next": Type(
        {"text_config": {"index_topk": 32, "index_kpool": 4}},
        replace(GLM, processor="Glm5NextProcessor", pictures="Glm5NextImageProcessorPil"),
    ),
    "glmga": Type(MROPE, replace(GLM46, pictures="GlmgaImageProcessorPil")),
    "dots3_note": Type(
        {"text_config": {"num_key_value_heads": 4, "head_dim": 16}},
        replace(
            QWEN,
            sizes={**AREA, "temporal_patch_size": 1},
            processor="Dots3NoteProcessor",
            image="<|imgpad|>",
            item="<|img|><|imgpad|><|endofimg|>",
            ids={"video_token_id": "<|video_pad|>", "audio_token_id": "<|audio_comp_pad|>"},
            others=("<|img|>", "<|endofimg|>"),
        ),
    ),
    "ernie4_5_vl_moe": Type(
        {
            "text_config": {
                "rope_parameters": {**MROPE["text_config"]["rope_parameters"], "mrope_section": [1, 1, 2]},
                "moe_intermediate_size": [48, 32],
            }
        },
        Recipe(
            "Ernie4_5_VLMoeProcessor",
            "Ernie4_5_VLMoeImageProcessorPil",
            image="<|IMAGE_PLACEHOLDER|>",
            item="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
            names={
                "image_token": "<|IMAGE_PLACEHOLDER|>",
                "image_end_token": "<|IMAGE_END|>",
                "image_start_token": "<|IMAGE_START|>",
                "video_token": "<|VIDEO_PLACEHOLDER|>",
                "video_end_token": "<|VIDEO_END|>",
                "video_start_token": "<|VIDEO_START|>",
            },
            ids={
                "image_end_token_id": "<|IMAGE_END|>",
                "image_start_token_id": "<|IMAGE_START|>",
                "video_token_id": "<|VIDEO_PLACEHOLDER|>",
                "video_end_token_id": "<|VIDEO_END|>",
                "video_start_token_id": "<|VIDEO_START|>",
            },
            sizes=AREA,
        ),
    ),
    "granite_docling": Type(
        {},
        Recipe(
            "GraniteDoclingProcessor",
            "GraniteDoclingImageProcessorPil",
            others=("<fake_token_around_image>", "<global-img>", "\n", "\n\n", *CELLS),
            options={"image_seq_len": 1},
            sizes={"size": SQUARE, "max_patches": 2},
        ),
    ),
    "granite4_vision": Type(
        {
            "image_grid_pinpoints": PINPOINTS,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0], [-2, 2]],
            "spatial_target_layers": [1, 2, 3, 4],
            "vision_config": {"hidden_size": 64},
        },
        replace(
            LLAVA,
            processor="Granite4VisionProcessor",
            pictures="LlavaNextImageProcessorPil",
            options={**CLIP_OPTIONS, "downsample_rate": "1/2"},
            sizes={**CROPPED, "image_grid_pinpoints": PINPOINTS},
        ),
    ),
    "hunyuan_vl": Type(
        {
            "text_config": {
                "head_dim": 8,
                "rope_parameters": {**MROPE["text_config"]["rope_parameters"], "mrope_section": [1, 1, 1, 1]},
            }
        },
        Recipe(
            "HunYuanVLProcessor",
            "HunYuanVLImageProcessorPil",
            item="<image_start><image><image_end>",
            names={
                "image_token": "<image>",
                "image_start_token": "<image_start>",
                "image_end_token": "<image_end>",
            },
            ids={"im_start_id": "<image_start>", "im_end_id": "<image_end>"},
            sizes=AREA,
        ),
    ),
    "minicpmv4_6": Type({"video_token_id": 111}, MINICPM),
    "minicpmv4_7": Type(
        {key: 111 + index for index, key in enumerate(MINICPM7)},
        replace(MINICPM, processor="MiniCPMV4_7Processor", ids=MINICPM7),
    ),
    "minicpm_ocr": Type(
        {"video_token_id": 111}, replace(MINICPM, sizes={**MINICPM.sizes, "downsample_mode": "4x"})
    ),
    "deepseek_ocr2": Type(
        {
            "text_config": {
                "mlp_layer_types": ["dense", "sparse", "dense", "dense", "sparse"],
                "num_experts_per_tok": 2,
                "n_group": 1,
                "topk_group": 1,
            },
            "vision_config": {
                "sam_config": {"downsample_channels": [32, 32], "image_size": 96, "patch_size": 8}
            },
        },
        Recipe(
            "DeepseekOcr2Processor",
            "DeepseekOcr2ImageProcessorPil",
            options={"patch_size": 2},
            sizes={"size": {"height": 96, "width": 96}, "tile_size": 96},
        ),
    ),
    "idefics": Type(
        {},
        Recipe(
            "IdeficsProcessor",
            "IdeficsImageProcessorPil",
            others=("<fake_token_around_image>",),
            sizes={"size": SQUARE},
            nested=True,
        ),
    ),
    "t5gemma2": Type(
        {"encoder": {"mm_tokens_per_image": 4}}, replace(GEMMA3, ids={"eoi_token_index": "<end_of_image>"})
    ),
    "shieldgemma2": Type({"mm_tokens_per_image": 4}, GEMMA3),
    "diffusion_gemma": Type(
        {
            "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
            "vision_config": GEMMA4_VISION,
            "canvas_length": 8,
        },
        GEMMA4,
    ),
    "pp_chart2table": Type(
        {}, Recipe("PPChart2TableProcessor", "PPChart2TableImageProcessorPil", sizes={"size": SQUARE})
    ),
    "kosmos-2": Type(
        {},
        Recipe(
            "Kosmos2Processor",
            "CLIPImageProcessorPil",
            item=" ",
            others=("</image>",),
            call={"num_image_tokens": 4},
            sizes=CROPPED,
        ),
        one_image=True,
    ),
    "kosmos-2.5": Type(
        {"vision_config": {"patch_embed_hidden_size": 768}},
        Recipe(
            "Kosmos2_5Processor",
            "Kosmos2_5ImageProcessorPil",
            item=" ",
            names={"image_token": "<s>", "boi_token": "<image>", "eoi_token": "</image>"},
            options={"num_image_tokens": 4},
            call={"max_patches": 64},
        ),
        one_image=True,
    ),
    "florence2": Type(
        {
            "vision_config": {
                "embed_dim": [32] * 4,
                "num_heads": [4] * 4,
                "num_groups": [4] * 4,
                "depths": [1] * 4,
            }
        },
        Recipe(
            "Florence2Processor",
            "CLIPImageProcessorPil",
            item=" ",
            names={"image_token": "<image>"},
            sizes={**CROPPED, "image_seq_length": 5},
        ),
        one_image=True,
    ),
    "git": Type({}, Recipe("GitProcessor", "CLIPImageProcessorPil", item=" ", sizes=CROPPED), one_image=True),
    "blip": Type(
        {}, Recipe("BlipProcessor", "BlipImageProcessorPil", item=" ", sizes={"size": SQUARE}), one_image=True
    ),
    "pix2struct": Type(
        {"vision_config": {"patch_embed_hidden_size": 768}},
        Recipe(
            "Pix2StructProcessor",
            "Pix2StructImageProcessorPil",
            image="",
            sizes={"patch_size": {"height": 16, "width": 16}, "max_patches": 16},
        ),
        one_image=True,
    ),
    "pp_formulanet": Type(
        {
            "vision_config": {
                "post_conv_in_channels": 32,
                "post_conv_mid_channels": 32,
                "post_conv_out_channels": 32,
            }
        },
        Recipe(image="", draw=pictures.squares(IMAGE_SIZE, "")),
        one_image=True,
    ),
    "vision-encoder-decoder": Type(
        {
            "decoder_start_token_id": 1,
            "bos_token_id": 1,
            "decoder": {"is_decoder": True, "add_cross_attention": True},
        },
        Recipe(image="", draw=pictures.squares(IMAGE_SIZE, "")),
        one_image=True,
    ),
    "instructblipvideo": Type(
        {"video_token_index": IMAGE_TOKEN}, Recipe(draw=pictures.frames), one_image=True
    ),
    "mistral_large4": Type({}, PIXTRAL),
    "cohere2_vision": Type({}, COHERE2),
    "cohere2_vision+window": Type({"text_config": {"sliding_window": 12}}, COHERE2, base="cohere2_vision"),
    "gemma4_unified": Type(
        {
            "vision_config": {
                "model_type": "gemma4_unified_vision",
                "patch_size": PATCH,
                "pooling_kernel_size": 2,
                "model_patch_size": 28,
                "mm_embed_dim": 32,
                "mm_posemb_size": 16,
                "output_proj_dims": 32,
            }
        },
        Recipe(image="<|image|>", ids=GEMMA4.ids, draw=pictures.gemma4, token_types=True),
    ),
    "inkling2": Type({}, INKLING2),
    "inkling2_loop": Type(
        {
            "text_config": {
                "n_layers_per_attn_res_block": 1,
                "loop_layer_index_start": 1,
                "loop_layer_index_end": 3,
            }
        },
        INKLING2,
    ),
    "inkling_mm_model": Type(
        {"vision_config": {"patch_size": 28}, "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 8}},
        Recipe(image="<|patch|>", ids={"image_bos_token_id": "<|content_image|>"}, draw=pictures.inkling),
    ),
    "kimi_k25": Type(
        {"text_config": {"head_dim": 4}},
        Recipe(
            image="<|media_pad|>",
            ids={"vision_start_token_id": "<|media_begin|>", "vision_end_token_id": "<|media_end|>"},
            draw=pictures.patches("<|media_begin|>", "<|media_pad|>", "<|media_end|>", flat=False),
        ),
    ),
    "lfm2_vl": Type(
        {
            "text_config": {
                "layer_types": ["conv", "full_attention", "conv", "full_attention", "full_attention"],
                "full_attn_idxs": [1, 3, 4],
            },
            "vision_config": {"num_patches": 16},
        },
        Recipe(
            others=(
                "<|image_start|>",
                "<|image_end|>",
                "<|img_thumbnail|>",
                "<|img_row_1_col_1|>",
                "<|img_row_2_col_1|>",
            ),
            draw=pictures.lfm2,
        ),
    ),
    "minimax_m3_vl": Type(
        {},
        Recipe(
            image="]<]image[>[",
            others=("]<]start of image[>[", "]<]end of image[>["),
            draw=pictures.patches("]<]start of image[>[", "]<]image[>[", "]<]end of image[>[", times=2),
        ),
    ),
    "molmo2": Type(
        {
            "vision_config": {"image_size": [56, 56], "num_position_embeddings": 16},
            "adapter_config": {"vision_feature_layer": [1, 0]},
        },
        Recipe(
            image="<im_patch>",
            ids={
                "image_start_token_id": "<im_start>",
                "low_res_image_start_token_id": "<low_res_im_start>",
                "image_end_token_id": "<im_end>",
            },
            others=("<im_col>",),
            draw=pictures.molmo,
        ),
    ),
    "muse_glimmer": Type({"out_hidden_size": 128}, MUSE),
    "muse_spark": Type(
        {"out_hidden_size": 128, "audio_config": {"hidden_sizes": [32] * 2, "depths": [1, 1]}}, MUSE
    ),
    "nemotron_h_omni": Type(
        {},
        Recipe(others=("<img>", "</img>"), draw=pictures.patches("<img>", "<image>", "</img>", grid="hw")),
    ),
    "step3p7": Type(
        {"text_config": {"sliding_window": 512}},
        Recipe(
            image="<im_patch>",
            others=("<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>"),
            draw=pictures.step3,
        ),
    ),
    "unlimited_ocr": Type(
        {"vision_config": {"sam_config": {"downsample_channels": [32, 32]}}},
        Recipe(draw=pictures.squares(64, "<image>" * 3)),
    ),
    "apertus1p5": Type(
        {
            "image_token_offset": 130,
            "audio_token_offset": 146,
            "audio_config": {"codebook_dim": 32},
            "vision_config": {"channel_multiplier": [1] * 5, "attn_resolutions": []},
        },
        Recipe(others=("<boi>", "<eoi>", "<eol>"), draw=pictures.apertus),
    ),
}

UNBUILT: dict[str, str] = {
    "evolla": "reads proteins, no pictures; the auto class for images and text refuses its configuration",
    "llama4": "its forward reads `image_outputs`, which the output of its language model lacks (5.24)",
    "mistral4": "a text model, without anything for pictures",
    "pi0": "moves robots: its head gives actions and no logits",
    "udop": "reads a box on the page for every word, and there are none in these prompts",
}

_TORCHVISION = "its image processor needs torchvision"
NO_PROCESSOR: dict[str, str] = {
    "apertus1p5": _TORCHVISION,
    "cohere2_vision": _TORCHVISION,
    "cohere2_vision+window": _TORCHVISION,
    "fuyu": "its image processor without torchvision transposes a tensor as if it were an array, and fails",
    "gemma4_unified": _TORCHVISION,
    "inkling2": _TORCHVISION,
    "inkling2_loop": _TORCHVISION,
    "inkling_mm_model": _TORCHVISION,
    "instructblipvideo": "its processor takes videos, for which it needs torchvision",
    "kimi_k25": _TORCHVISION,
    "lfm2_vl": _TORCHVISION,
    "llava+pixtral": "PixtralProcessor needs torchvision",
    "minimax_m3_vl": _TORCHVISION,
    "mistral3": "PixtralProcessor needs torchvision",
    "mistral_large4": "PixtralProcessor needs torchvision",
    "molmo2": _TORCHVISION,
    "muse_glimmer": _TORCHVISION,
    "muse_spark": _TORCHVISION,
    "nemotron_h_omni": _TORCHVISION,
    "perception_lm": _TORCHVISION,
    "pp_formulanet": _TORCHVISION,
    "smolvlm": "its processor needs num2words",
    "step3p7": _TORCHVISION,
    "unlimited_ocr": _TORCHVISION,
    "vision-encoder-decoder": "it has none",
}

# Processors that work, and that `vlmfix.load` cannot read back.
NOT_LOADED: dict[str, str] = {
    "ernie4_5_vl_moe": "its image processor without torchvision cannot be saved: it has no `font`",
    "minicpm_ocr": "its processor reads settings of its part for videos, which needs torchvision",
    "minicpmv4_6": "its processor reads settings of its part for videos, which needs torchvision",
    "minicpmv4_7": "its processor reads settings of its part for videos, which needs torchvision",
    "fast_vlm": "its vision tower is a stand-in",
    "gemma3n": "its vision tower is a stand-in",
    "ovis2": "its processor calls the token of the template the image token, its model the one put in",
    "shieldgemma2": "its weights are saved under names that its own class does not read",
}

# Types whose forward or generate does not run without a picture.
ALWAYS_PICTURES = {
    "blip",
    "blip-2",
    "idefics",
    "instructblip",
    "instructblipvideo",
    "kosmos-2",
    "pix2struct",
    "pp_formulanet",
    "vision-encoder-decoder",
}
