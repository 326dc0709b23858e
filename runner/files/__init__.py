"""Writing, reading and telling: atomic files, the ledger, progress, statistics."""
