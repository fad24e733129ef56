"""Loading models, the embedded ones, and what is known about checkpoints."""
