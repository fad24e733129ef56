"""MRFD: multi-region fusion decoding."""
