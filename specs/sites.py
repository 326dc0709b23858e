"""The places of a decoder block where an intervention can act."""

from __future__ import annotations

from typing import Literal, get_args

CoreSite = Literal["block_output", "attention_heads", "attention_output", "mlp_output"]
"""The sites that engines and patching know, too."""

Site = Literal[
    "block_output",
    "attention_heads",
    "attention_output",
    "mlp_output",
    "block_input",
    "mlp_input",
    "mlp_neurons",
    "query",
    "key",
    "value",
]
"""Where an intervention acts.

``block_output`` is the residual stream after the block, ``attention_heads`` the input of the attention's
output projection with all heads concatenated (``[batch, tokens, n_heads*head_dim]``), ``attention_output``
what that projection gives, ``mlp_output`` what the feed-forward part gives (both before they are added to
the residual stream; ``[batch, tokens, width]``).

``block_input`` is the residual stream as the block receives it, ``mlp_input`` what the feed-forward part
reads (after the norm before it), ``mlp_neurons`` the input of its down projection (``[batch, tokens,
neurons]``, the intermediate size). ``query``, ``key`` and ``value`` are what these projections give, before
norms and rotary embeddings; ``key`` and ``value`` have as many heads as the queries share.
"""

SITES: tuple[Site, ...] = get_args(Site)
CORE_SITES: tuple[CoreSite, ...] = get_args(CoreSite)
