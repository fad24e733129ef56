"""Baselines: trivial explanations of a gain, to be put beside every method."""
