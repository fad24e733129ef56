"""The scorers of POPE, CHAIR and VQA: pure functions of texts, without any model."""
