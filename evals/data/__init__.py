"""Data sets of the evaluations: a synthetic world of scenes, written in the formats of COCO and VQA v2."""

from evals.data.coco import write_coco
from evals.data.rendering import render
from evals.data.scenes import Scene, SceneObject, demo_scene, sample_scene

__all__ = ["Scene", "SceneObject", "demo_scene", "render", "sample_scene", "write_coco"]
