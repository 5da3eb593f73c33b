"""Training: the loop, its state, its losses, one or many processes."""
