"""Where a model runs for others: what an engine needs to know of an edit, and the server of `subvene serve`.

Most files plan: positions as intervals, artifacts as columns, requests as plans, keys for cached tokens. They
import no engine. `in_process`, `batching`, `protocol` and `http` serve under transformers.
"""
