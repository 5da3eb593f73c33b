"""Comparisons, repetitions and ablations: many runs, one table."""
