"""Evaluation data and benchmarks."""
