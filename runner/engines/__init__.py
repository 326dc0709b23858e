"""How a model runs elsewhere than in this process: what an engine needs to know of an edit.

The files here plan: positions as intervals, artifacts as columns, requests as plans, keys for cached tokens.
They import no engine.
"""
