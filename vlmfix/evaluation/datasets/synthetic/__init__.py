"""A synthetic world of scenes, written in the formats of COCO and VQA v2."""
