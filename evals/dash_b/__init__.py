"""DASH-B: pictures in which models see an object that is not there (arXiv 2503.23573)."""
