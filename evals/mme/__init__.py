"""MME: two yes/no questions about each image, in 14 subtasks (arXiv 2306.13394)."""
