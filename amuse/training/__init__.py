"""Training in one process or many: the loop, its state and its losses."""
