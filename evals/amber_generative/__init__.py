"""AMBER, generative part: objects in descriptions that are not in the picture (arXiv 2311.07397)."""
