"""Methods that change the image and ask several times."""
