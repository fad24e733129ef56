"""Runs of benchmarks that can be killed and resumed."""
