"""Data sets of the evaluations: a synthetic world of scenes, written in the formats of COCO and VQA v2."""

from vlmfix.evaluation.datasets.coco import write_coco
from vlmfix.evaluation.datasets.synthetic.rendering import render
from vlmfix.evaluation.datasets.synthetic.scenes import (
    Scene,
    SceneObject,
    demo_scene,
    sample_scene,
)

__all__ = ["Scene", "SceneObject", "demo_scene", "render", "sample_scene", "write_coco"]
