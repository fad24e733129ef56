"""CARVE: contrastive attention refinement of the image."""
