"""Evaluation: runs of benchmarks, their files, comparisons and reports."""
