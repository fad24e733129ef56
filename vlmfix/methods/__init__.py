"""Mitigation methods, one file each, by the stage at which they act."""
