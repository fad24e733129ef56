"""Parts of a model, found from the model."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

from tests.support import families, zoo
from vlmfix.models.structure import attention_layers, image_arguments, memory_of, text_decoder


@pytest.mark.parametrize(
    ("name", "layers", "has_state", "window", "arguments"),
    [
        ("qwen3_5", (3,), True, None, {"pixel_values", "image_grid_thw"}),
        ("lfm2_vl", None, True, None, {"pixel_values", "spatial_shapes", "pixel_attention_mask"}),
        ("gemma3+window", (0, 1, 2, 3, 4), False, 12, {"pixel_values"}),
        ("deepseek_vl_hybrid", (0, 1, 2, 3, 4), False, None, {"pixel_values", "high_res_pixel_values"}),
    ],
)
@pytest.mark.slow
def test_what_a_decoder_keeps_and_an_encoder_takes(
    name: str, layers: tuple[int, ...] | None, has_state: bool, window: int | None, arguments: set[str]
) -> None:
    if (zoo.TYPES[name].base or name) not in KNOWN:
        pytest.skip(f"this version of transformers has no {name}")
    model = zoo.build(name)
    decoder = text_decoder(model)
    found = attention_layers(decoder)
    assert found == layers or (layers is None and 0 < len(found) < len(decoder.layers))
    assert memory_of(decoder)[:2] == (window, has_state)
    assert arguments <= set(image_arguments(model))


def test_every_family_of_the_tests_keeps_all(models: dict[str, object]) -> None:
    for family in families.FAMILIES:
        decoder = text_decoder(models[family])  # type: ignore[arg-type]
        assert attention_layers(decoder) == tuple(range(families.LAYERS))
        assert memory_of(decoder) == (None, False, None)
