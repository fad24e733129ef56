"""Methods that drop image tokens of the prompt."""
