"""HumbleBench: five options, of which the last is "None of the above" (arXiv 2509.09658)."""
