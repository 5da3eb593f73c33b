"""The model of the paper, stage by stage (III-A to III-D)."""
