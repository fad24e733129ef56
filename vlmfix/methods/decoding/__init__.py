"""Methods that choose the tokens."""
