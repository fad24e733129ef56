"""POPE: yes/no questions about objects, half of which are not in the picture (arXiv 2305.10355)."""
