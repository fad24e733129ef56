"""A package beside vlmfix, as its users write them."""
