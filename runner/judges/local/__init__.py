"""Local language models as the local back end needs them."""
