"""Activations at sites, in batches, kept in shards."""
