"""Base of benchmarks, and their registry."""
