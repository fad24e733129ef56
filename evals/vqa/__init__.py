"""VQA v2: short answers beside the answers of ten people (arXiv 1612.00837)."""
