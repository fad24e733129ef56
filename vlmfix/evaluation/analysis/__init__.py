"""Statistics of results, and comparisons of methods."""
