"""Methods that edit attention scores, weights or head outputs."""
