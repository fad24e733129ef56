"""SHIELD: repairs of the features of the vision encoder, and a contrast with an attacked image."""
