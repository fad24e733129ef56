"""What lets any method act on any stock model."""
