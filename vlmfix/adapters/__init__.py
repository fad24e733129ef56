"""Adapters: vlmfix as a model of evaluation harnesses, which find it by entry points."""
