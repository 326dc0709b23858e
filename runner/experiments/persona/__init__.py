"""Persona vectors: traits, the sweep over layers and coefficients, conditions side by side, geometry."""
