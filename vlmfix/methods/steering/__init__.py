"""Methods that edit the residual stream."""
