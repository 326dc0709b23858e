"""Conditions compared: every arm, seed and fold measured, as units of work that are done once."""
