"""Processors that several types share, and parts of configurations that go with them."""

from __future__ import annotations

from dataclasses import replace

from tests.support.zoo import pictures
from tests.support.zoo.processors import AREA, CROPPED, SQUARE, Recipe
from tests.support.zoo.shrink import IMAGE_SIZE, PATCH

PINPOINTS = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE]]
CLIP_OPTIONS = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
LLAVA = Recipe("LlavaProcessor", "LlavaImageProcessorPil", options=CLIP_OPTIONS, sizes=CROPPED)
GEMMA3 = Recipe(
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
)
GEMMA4_VISION = {
    "model_type": "gemma4_vision",
    "pooling_kernel_size": 2,
    "patch_size": PATCH,
    "position_embedding_size": 64,
}
GEMMA4 = Recipe(
    "Gemma4Processor",
    "Gemma4ImageProcessorPil",
    image="<|image|>",
    names={
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
    ids={
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
    },
    others=("<|video|>",),
    sizes={"patch_size": PATCH, "max_soft_tokens": 70, "pooling_kernel_size": 2},
)
QWEN_IDS = {
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
QWEN = Recipe(
    "Qwen2VLProcessor",
    "Qwen2VLImageProcessorPil",
    image="<|image_pad|>",
    item="<|vision_start|><|image_pad|><|vision_end|>",
    ids=QWEN_IDS,
    sizes=AREA,
)
LARGE = {"size": {"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 56 * 84}, "patch_size": PATCH}
# A thinker alone lacks them in its configuration, and asks for them.
OMNI_IDS = {"vision_start_token_id": 141, "vision_end_token_id": 142}
OMNI = Recipe(
    "Qwen2_5OmniProcessor",
    "Qwen2VLImageProcessorPil",
    image="<|IMAGE|>",
    item="<|vision_bos|><|IMAGE|><|vision_eos|>",
    names={
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    },
    ids={"vision_start_token_id": "<|vision_bos|>", "vision_end_token_id": "<|vision_eos|>"},
    sizes=AREA,
)
GLM = Recipe(
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
    sizes=LARGE,
)
GLM46 = replace(GLM, processor="Glm46VProcessor", pictures="Glm46VImageProcessorPil")
PIXTRAL = Recipe(image="[IMG]", others=("[IMG_BREAK]", "[IMG_END]"), draw=pictures.rows(2))
LIGHTON = Recipe(
    "LightOnOcrProcessor",
    "PixtralImageProcessorPil",
    image="[IMG]",
    names={"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    options={"patch_size": PATCH, "spatial_merge_size": 2},
    sizes={"size": {"longest_edge": 84}, "patch_size": {"height": PATCH, "width": PATCH}},
)
CELLS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3))
TILES = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": IMAGE_SIZE}}
IDEFICS3 = Recipe(
    "Idefics3Processor",
    "Idefics3ImageProcessorPil",
    others=("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "\n", "\n\n", *CELLS),
    options={"image_seq_len": 4},
    sizes=TILES,
)
BLIP = Recipe(
    "Blip2Processor",
    "BlipImageProcessorPil",
    item=" ",
    options={"num_query_tokens": 4},
    sizes={"size": SQUARE},
)
INTERNVL = Recipe(
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


PALIGEMMA = Recipe(
    "PaliGemmaProcessor",
    "SiglipImageProcessorPil",
    names={"image_token": "<image>"},
    sizes={"size": SQUARE, "image_seq_length": 16},
)
MINICPM7 = {
    "video_token_id": "<|video_pad|>",
    "image_start_id": "<image>",
    "image_end_id": "</image>",
    "slice_start_id": "<slice>",
    "slice_end_id": "</slice>",
    "newline_id": "\n",
}
MINICPM = Recipe(
    "MiniCPMV4_6Processor",
    "MiniCPMV4_6ImageProcessorPil",
    image="<|image_pad|>",
    names={
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    },
    ids={"video_token_id": "<|video_pad|>"},
    others=("\n", "0", "1", "2"),
    sizes={"patch_size": PATCH, "scale_resolution": 56, "max_slice_nums": 2},
    joined=3,
)
COHERE2 = Recipe(
    image="<|IMG_PATCH|>",
    others=("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"),
    draw=pictures.tiles(pictures.cohere),
)
INKLING2 = Recipe(image="<|patch|>", draw=pictures.inkling2)
MUSE = Recipe(
    image="<|patch|>",
    others=("<|image_start|>", "<|image_end|>"),
    draw=pictures.patches("<|image_start|>", "<|patch|>", "<|image_end|>", times=2),
)
MROPE = {
    "text_config": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    }
}
# A quarter of a head turns in the stock models; half of one of 16 leaves as many frequencies as `MROPE` has.
HALF_MROPE = {
    "text_config": {
        "head_dim": 16,
        "rope_parameters": {**MROPE["text_config"]["rope_parameters"], "partial_rotary_factor": 0.5},
    }
}
