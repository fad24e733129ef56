"""accelerate: weights that are on the disk, or spread over devices, until a layer runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

import vlmfix
from tests.support import families, interop
from tests.support.methods import ATTACHED, representatives

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def test_methods_act_on_weights_on_the_disk(tmp_path: Path) -> None:
    model = families.build("llava")
    accelerate.disk_offload(model, str(tmp_path), execution_device=CPU)
    assert model.lm_head.weight.device.type == "meta"
    assert interop.differing(model, families.build("llava"), representatives(ATTACHED)) == []


def test_methods_act_on_a_model_in_parts(tmp_path: Path) -> None:
    places = {
        "model.vision_tower": "disk",
        "model.multi_modal_projector": "cpu",
        "model.language_model.embed_tokens": "cpu",
        "model.language_model.layers.0": "disk",
        "model.language_model": "cpu",
        "lm_head": "disk",
    }
    model = accelerate.dispatch_model(
        families.build("llava"), places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
    )
    assert interop.differing(model, families.build("llava"), list(interop.UNLIKE)) == []


def test_text_in_text_out_of_an_offloaded_model(loaded: tuple[Any, Any]) -> None:
    model, processor = vlmfix.load()
    accelerate.cpu_offload(model, execution_device=CPU)
    for method in ("var", "carve"):
        texts = [
            vlmfix.generate(each, processor, "docs/scene.png", "Describe it.", method, max_new_tokens=4)
            for each in (model, loaded[0])
        ]
        assert texts[0] == texts[1]
