"""Models: loading, what they consist of, what they are known by, their caches."""
