"""From pictures and prompts to batches, and back to text."""
