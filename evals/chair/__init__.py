"""CHAIR: objects that a caption names and the picture does not have (arXiv 1809.02156)."""
