"""Experiments in units of work that are done once: the scaffold, and a folder a study."""
