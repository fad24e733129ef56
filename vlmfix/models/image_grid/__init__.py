"""Image grids: where the image tokens of a prompt lie on the images, a file a way to cut images."""
