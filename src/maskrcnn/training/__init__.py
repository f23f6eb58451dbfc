"""Training: the loop, its optimiser, its files and its processes."""
