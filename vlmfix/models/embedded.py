"""The names of the embedded models."""

EMBEDDED = ("tiny-llava", "tiny-qwen2.5-vl")
DEFAULT_MODEL = EMBEDDED[0]
