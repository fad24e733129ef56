"""Methods that edit the logits of the next token."""
