"""Programs that measure speed and memory as ratios to plain greedy decoding in the same run."""
