"""What a benchmark is, and how it is found."""
