"""Methods that act inside the vision encoder."""
