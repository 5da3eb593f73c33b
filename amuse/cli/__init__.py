"""The `amuse` command."""
