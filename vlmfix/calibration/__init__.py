"""Calibration: what a checkpoint needs is found from pictures."""
