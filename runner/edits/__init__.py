"""Interventions compiled against a model: hooks, positions, receipts, refusals."""
