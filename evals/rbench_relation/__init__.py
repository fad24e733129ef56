"""R-Bench: yes/no questions about relations between objects (arXiv 2406.16449)."""
