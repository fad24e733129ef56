"""Names of the families of tests, without the models."""

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")

QUICK = "llava"
"""The family of the quick subset."""

UNLIKE = (QUICK, "qwen2_5_vl")
"""Families that differ most; each of the others is near to one of them."""
