"""Questions about cats, a benchmark of a package beside vlmfix."""
