"""Interchange: what the subspaces of a fit do when they are swapped, beside what else would do it."""
