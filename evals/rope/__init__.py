"""ROPE: the classes of five marked objects, asked at once or one by one (arXiv 2407.06192)."""
