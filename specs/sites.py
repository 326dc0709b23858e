"""The places of a decoder block where an intervention can act."""

from __future__ import annotations

from typing import Literal

Site = Literal["block_output", "attention_heads", "attention_output", "mlp_output"]
"""Where an intervention acts.

``block_output`` is the residual stream after the block, ``attention_heads`` the input of the attention's
output projection with all heads concatenated (``[batch, tokens, n_heads*head_dim]``), ``attention_output``
what that projection gives, ``mlp_output`` what the feed-forward part gives (both before they are added to
the residual stream; ``[batch, tokens, width]``).
"""

SITES: tuple[Site, ...] = ("block_output", "attention_heads", "attention_output", "mlp_output")
