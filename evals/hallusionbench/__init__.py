"""HallusionBench: yes/no questions on original and edited figures (arXiv 2310.14566)."""
