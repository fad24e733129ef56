"""VQA v2: short answers beside those of ten people (arXiv 1612.00837)."""
