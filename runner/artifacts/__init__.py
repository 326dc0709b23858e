"""Artifacts: the folder of tensors, spec and card, and the Hub where it is shared."""
